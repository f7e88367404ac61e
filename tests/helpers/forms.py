"""Copies of two tiny models in every form in which a stolen classifier turns up, and the vaults to trace them.

`tests/forms/conv` and `tests/forms/vit` hold a base, a vault, alice's copy, and `made/`: that copy as public
converters wrote it; `examples/forms` has the scripts. The vault has copies for alice, bob and carol.
"""

import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from hf_fingerprint import TraceResult, Vault, trace
from hf_fingerprint.checkpoints.formats.computed_tensors import stored_rows
from hf_fingerprint.checkpoints.formats.torch_tensors import LazyTensor


FORMS = Path(__file__).parent.parent / "forms"
PASSPHRASE = "a passphrase for the example"
KINDS = ("conv", "vit")
RECIPIENT = "alice"


def copy_weights(kind: str) -> dict[str, np.ndarray]:
    """The weights of the copy that all forms were made from."""
    return load_file(FORMS / kind / "copy" / "model.safetensors")


def made(pattern: str) -> list[Path]:
    """The files or folders made from the copies whose names match a pattern, such as `*.onnx`."""
    return sorted(path for kind in KINDS for path in (FORMS / kind / "made").glob(pattern))


def kind_of(form: Path) -> str:
    """The model that a form was made from."""
    return form.relative_to(FORMS).parts[0]


def open_vault(kind: str, folder: Path) -> Vault:
    """The unlocked vault of a kind of model, copied to an empty folder."""
    place = folder / f"{kind}-vault"
    shutil.copytree(FORMS / kind / "vault", place)
    for path in (place, *place.iterdir()):
        path.chmod(0o700 if path.is_dir() else 0o600)
    vault = Vault(place)
    vault.unlock(PASSPHRASE)
    return vault


def trace_form(form: Path, vault: Vault) -> TraceResult:
    """Traces a form against the base on disk."""
    return trace(form, vault, base=FORMS / kind_of(form) / "base", all_scores=True)


def best_matches(tensors: dict[str, np.ndarray], kind: str) -> dict[str, float]:
    """How well each convolution and matrix of the copy is found among `tensors`, whatever their names and axes.

    Returns:
        `dict[str, float]`: by the copy's names, the largest cosine of the sorted values of a tensor of the same size.
    """

    def flat(values: np.ndarray) -> np.ndarray:
        wide = np.sort(values.astype(np.float64), axis=None)
        return wide / max(float(np.linalg.norm(wide)), 1e-30)

    found = [flat(values) for values in tensors.values() if values.ndim > 1]
    return {
        name: max((float(flat(values) @ each) for each in found if each.size == values.size), default=0.0)
        for name, values in copy_weights(kind).items()
        if values.ndim > 1 and "embed" not in name and "token" not in name
    }


def read_tensor(tensor: LazyTensor) -> np.ndarray:
    """All values of a tensor, read in parts of some rows; floats as `float32`."""
    rows, count = stored_rows(tensor), tensor.shape[0] if tensor.shape else 1
    parts = [rows(start, min(start + 3, count)) for start in range(0, count, 3)]
    return np.concatenate(parts).reshape(tensor.shape) if parts else np.empty(tensor.shape, np.float32)
