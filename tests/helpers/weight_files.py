"""Weight files and folders made by the usual tools, and the result of opening each as a base.

python tests/helpers/weight_files.py     # prints which are read, and the errors of the rest
"""

import argparse
import gzip
import io
import pickle
import shutil
import sys
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from timm.utils import CheckpointSaver

from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.errors import FingerprintError


READ = ""
SUSPECT_ONLY = "which only a suspect may have"
Form = tuple[Callable[[Path], Path | str], str]
FORMS: dict[str, Form] = {}


def form(name: str, expected: str = READ) -> Callable[[Callable[[Path], Path | str]], Callable[[Path], Path | str]]:
    """Registers a form: how to make it in an empty folder, and its expected error (empty if it is read)."""

    def note(make: Callable[[Path], Path | str]) -> Callable[[Path], Path | str]:
        FORMS[name] = make, expected
        return make

    return note


def small() -> torch.nn.Module:
    """A model of timm's own tiny ones."""
    torch.manual_seed(1)
    return timm.create_model("test_resnet.r160_in1k", pretrained=False, num_classes=5)


MODEL = small()
STATE = MODEL.state_dict()


def expected_bytes() -> dict[str, bytes]:
    """What every form that is read holds."""
    return {name: tensor.numpy().tobytes() for name, tensor in STATE.items()}


def saved(path: Path, content: Any, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path, **options)
    return path


def written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def buffered(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def training() -> dict[str, Any]:
    """What Lightning's Trainer saves, by its documentation."""
    return {
        "epoch": 3,
        "global_step": 100,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": STATE,
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"current": {"ready": 1}}}},
        "callbacks": {
            "ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5), "dirpath": Path("x")}
        },
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": np.float64(0.1)}]}],
        "lr_schedulers": [{"last_lr": [np.float64(0.1)]}],
        "hparams_name": "kwargs",
        "hyper_parameters": argparse.Namespace(lr=0.1, out=Path("runs")),
    }


def save_with_timm(folder: Path, name: str) -> Path:
    """A folder that timm's own training script leaves."""
    model = small()
    model.load_state_dict(STATE)
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    args = argparse.Namespace(model="test_resnet", output=Path("runs"), mean=np.float32(0.5))
    ema = small()
    saver = CheckpointSaver(
        model=model,
        optimizer=optimizer,
        args=args,
        model_ema=ema,
        checkpoint_dir=str(folder),
        recovery_dir=str(folder),
    )
    model.load_state_dict(STATE)
    saver.save_checkpoint(0, metric=np.float64(0.5))
    return next(folder.glob(name))


form("a state dict")(lambda f: saved(f / "model.pth", STATE))
form("a state dict before PyTorch 1.6")(lambda f: saved(f / "model.pth", STATE, _use_new_zipfile_serialization=False))
form(".pth.tar")(lambda f: saved(f / "model_best.pth.tar", {"epoch": 1, "arch": "resnet", "state_dict": STATE}))
form("a folder with .pth.tar")(lambda f: saved(f / "checkpoint.pth.tar", {"state_dict": STATE}).parent)
form("upper case")(lambda f: saved(f / "MODEL.PTH", STATE).parent)
form(".th")(lambda f: saved(f / "resnet20.th", {"state_dict": STATE}).parent)
form(".pkl")(lambda f: saved(f / "model.pkl", STATE).parent)
form("pickle.dump")(lambda f: written(f / "model.pkl", pickle.dumps(STATE)))
form("pickle.dump of NumPy arrays")(
    lambda f: written(f / "model.pkl", pickle.dumps({"model": {n: t.numpy() for n, t in STATE.items()}}))
)
form("a cache's blob, safetensors")(lambda f: _blob(f, "0" * 64))
form("a cache's blob, PyTorch")(lambda f: written(f / ("1" * 64), buffered(STATE)))
form("safetensors named .bin")(lambda f: written(f / "pytorch_model.bin", _safetensors(f)).parent)
form("a timm training's checkpoint")(lambda f: save_with_timm(f, "checkpoint-0.pth.tar"))
form("a timm training's best")(lambda f: save_with_timm(f, "model_best.pth.tar"))
form("a Lightning checkpoint")(lambda f: saved(f / "epoch=3-step=100.ckpt", training()))
form("torch.save(model)")(lambda f: saved(f / "model.pt", MODEL))
form("torch.save(model) before PyTorch 1.6")(
    lambda f: saved(f / "model.pt", MODEL, _use_new_zipfile_serialization=False)
)
form("a model saved whole in a dictionary")(lambda f: saved(f / "model.pt", {"epoch": 1, "model": MODEL}))
form("channels last")(
    lambda f: saved(f / "model.pth", small_like(STATE).to(memory_format=torch.channels_last).state_dict())
)
form("a zip packed once more")(lambda f: _deflated(f / "model.pth"))
form("TorchScript")(lambda f: _script(f / "model.pt"))
form("one of several by name")(
    lambda f: (
        f"{saved(f / 'good.pth', STATE).parent}:{saved(f / 'other.pth', {'a': torch.ones(3)}).parent and 'good.pth'}"
    )
)
form("with the state of a training")(lambda f: _with_state_file(f))
form("a state folder of Accelerate")(lambda f: _accelerate(f))

form("several files", "--file")(lambda f: saved(saved(f / "a.pth", STATE).parent / "b.pth", STATE).parent)
form("a git-LFS pointer", "git lfs pull")(
    lambda f: (
        written(
            f / "model.safetensors",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456\n",
        ).parent
    )
)
form("a git-LFS pointer named .bin", "git lfs pull")(
    lambda f: written(f / "pytorch_model.bin", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
)
form("a web page", "web page")(lambda f: written(f / "model.safetensors", b"<!DOCTYPE html>\n<html><head>..."))
form("a web page named .bin", "/resolve/")(lambda f: written(f / "pytorch_model.bin", b"\n <html lang='en'>"))
form("gzip", "gzip")(lambda f: written(f / "model.pth", gzip.compress(buffered(STATE))))
form("a tar of a folder", "unpack it")(lambda f: _tar(f / "model.tar"))
form("OpenVINO", "OpenVINO")(lambda f: _openvino(f, "openvino_model"))
form("OpenVINO by another name", "OpenVINO")(lambda f: _openvino(f, "resnet"))
form("Keras", "Keras")(lambda f: written(f / "tf_model.h5", b"\x89HDF\r\n\x1a\n" + bytes(100)))
form("Flax", "convert")(lambda f: written(f / "flax_model.msgpack", b"\x81\xa6params\x80").parent)
form("ONNX", "ONNX")(lambda f: written(f / "model.onnx", b"\x08\x07\x12\x07pytorch\x1a\x052.1.0" + bytes(50)))
form("GGUF", "GGUF")(lambda f: written(f / "model.gguf", b"GGUF\x03" + bytes(100)))
form("NumPy's npz", "NumPy")(lambda f: _npz(f / "weights.npz"))
form("torch.export", SUSPECT_ONLY)(lambda f: _exported(f / "model.pt2"))
form("an empty file", "empty")(lambda f: written(f / "model.safetensors", b""))
form("a download that broke off", "download it again")(lambda f: written(f / "model.pth", buffered(STATE)[:5000]))
form("a LoRA folder", "merge_and_unload")(lambda f: _lora(f))
form("a LoRA file", "merge_and_unload")(lambda f: _lora(f) / "adapter_model.safetensors")
form("an optimizer's state alone", "holds tensors in state")(
    lambda f: saved(f / "optimizer.pt", {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []})
)
form("views that overlap in part", "clones")(lambda f: saved(f / "x.pth", {"a": LINE[:4], "b": LINE[2:]}))
LINE = torch.arange(6.0)


def small_like(state: dict[str, torch.Tensor]) -> torch.nn.Module:
    model = small()
    model.load_state_dict(state)
    return model


def _two(folder: Path) -> Path:
    saved(folder / "other.pth", {"a": torch.ones(3)})
    return saved(folder / "good.pth", STATE).parent


def _openvino(folder: Path, name: str) -> Path:
    written(folder / f"{name}.xml", b"<?xml version='1.0'?><net/>")
    return written(folder / f"{name}.bin", bytes(1000))


def _safetensors(folder: Path) -> bytes:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(STATE, folder / "x.tmp")
    content = (folder / "x.tmp").read_bytes()
    (folder / "x.tmp").unlink()
    return content


def _blob(folder: Path, name: str) -> Path:
    return written(folder / name, _safetensors(folder))


def _deflated(path: Path) -> Path:
    source = zipfile.ZipFile(io.BytesIO(buffered(STATE)))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.namelist():
            target.writestr(member, source.read(member))
    return path


def _script(path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = small_like(STATE).eval()
        torch.jit.save(torch.jit.trace(model, torch.zeros(1, 3, 64, 64)), path)
    return path


def _with_state_file(folder: Path) -> Path:
    written(folder / "model.safetensors", _safetensors(folder))
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt", "training_args.bin"):
        saved(folder / name, {"state": {0: {"exp_avg": torch.ones(2)}}, "args": argparse.Namespace(lr=0.1)})
    return folder


def _accelerate(folder: Path) -> Path:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = small_like(STATE)
    model, _ = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    accelerator.save_state(str(folder / "state"))
    return folder / "state"


def _tar(path: Path) -> Path:
    inner = saved(path.parent / "inner.pth", STATE)
    with tarfile.open(path, "w") as archive:
        archive.add(inner, "inner.pth")
    return path


def _npz(path: Path) -> Path:
    np.savez(path, **{name: tensor.numpy() for name, tensor in STATE.items()})
    return path


def _exported(path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),)), path)
    return path


def _lora(folder: Path) -> Path:
    from peft import LoraConfig, get_peft_model

    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    get_peft_model(model, LoraConfig(target_modules=["0"], r=2)).save_pretrained(folder)
    return folder


def outcome(place: Path | str) -> tuple[dict[str, bytes], str]:
    """The tensors of a base that is read, or what is said of it."""
    try:
        with open_checkpoint(place) as checkpoint:
            return {name: checkpoint.read(info).tobytes() for name, info in checkpoint.tensors.items()}, ""
    except FingerprintError as error:
        return {}, str(error)


if __name__ == "__main__":
    whole = expected_bytes()
    for name, (make, expected) in FORMS.items():
        folder = Path(tempfile.mkdtemp())
        try:
            read, said = outcome(make(folder))
            right = (read == whole) if expected == READ else expected in said
            shown = f"read, {len(read)} tensors" if read else said.replace(str(folder), "...")
            sys.stdout.write(f"{'ok ' if right else 'BAD'}  {name}: {shown}\n")
        finally:
            shutil.rmtree(folder)
    sys.stdout.write(f"{len(FORMS)} forms\n")
