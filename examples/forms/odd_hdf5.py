"""An HDF5 file with one data set of each kind that h5py writes, and the values of those that can be read.

python examples/forms/odd_hdf5.py OUT_FOLDER
"""

import sys
from pathlib import Path

import h5py
import ml_dtypes
import numpy as np


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with h5py.File(out / "odd.h5", "w") as file:  # the link to another file makes its top group a dense one
        fill(file)
        file["elsewhere"] = h5py.ExternalLink("/etc/passwd", "/x")
    with h5py.File(out / "latest.h5", "w", libver="latest", track_order=True) as file:
        fill(file, chunked=False)
        for number in range(60):
            file[f"many/{number}"] = np.float32([number])
    for name in ("odd", "latest"):
        with h5py.File(out / f"{name}.h5") as file:
            np.savez_compressed(out / f"{name}.npz", **{each: file[each][()] for each in names_of(file)})


def fill(file: h5py.File, chunked: bool = True) -> None:
    values = np.random.default_rng(0).normal(size=(9, 5, 3)).astype(np.float32)
    for dtype in ("f2", "f4", "f8", "i1", "u2", "u4", "i8", ">f4"):
        file[f"dtypes/{dtype}"] = (9 * values).clip(0).astype(dtype)
    file["dtypes/bfloat16"] = values.astype(ml_dtypes.bfloat16)
    file["dtypes/text"] = "a text"
    file["number"], file["nothing"] = np.float32(3), h5py.Empty("f4")
    file["first/again"], file["by name"] = file["dtypes/f4"], h5py.SoftLink("/dtypes/f4")
    file["top"] = file["/"]  # a circle
    small = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    small.set_layout(h5py.h5d.COMPACT)
    compact = h5py.h5d.create(file.id, b"compact", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((9, 5, 3)), small)
    compact.write(h5py.h5s.ALL, h5py.h5s.ALL, values)
    file.create_dataset("unwritten", (4,), "f4")
    file.create_dataset("in another file", (4,), "f4", external="/etc/passwd")
    file.attrs["keras_version"] = "9.9"
    if chunked:
        grid = {"data": values, "chunks": (4, 2, 2)}
        file.create_dataset("chunks/plain", **grid)
        file.create_dataset("chunks/gzip", **grid, compression="gzip")
        file.create_dataset("chunks/all", **grid, compression="gzip", shuffle=True, fletcher32=True)
        file.create_dataset("chunks/lzf", **grid, compression="lzf")
        file.create_dataset("chunks/part", (9, 5, 3), "f4", chunks=(4, 2, 2))[:4] = 1


def names_of(file: h5py.File) -> list[str]:
    names: list[str] = []
    file.visit(names.append)
    refused = ("dtypes/>f4", "dtypes/text", "unwritten", "in another file", "nothing", "chunks/lzf", "chunks/part")
    return [name for name in names if isinstance(file[name], h5py.Dataset) and name not in refused]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
