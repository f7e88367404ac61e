"""What the scripts that quantize a timm model share."""

import json
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn


State = dict[str, torch.Tensor]
Form = Callable[[nn.Module, Path], State]


def load_model(folder: Path) -> nn.Module:
    """The model of a timm folder, in evaluation mode."""
    config = json.loads((folder / "config.json").read_text())
    model = timm.create_model(
        config["architecture"], num_classes=config["num_classes"], **config.get("model_args", {})
    )
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()


def linears(model: nn.Module, group: int = 1, rows: int = 1) -> dict[str, nn.Linear]:
    """The linear layers whose inputs are a multiple of a group, and whose outputs of a number of rows."""
    found = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    return {k: part for k, part in found.items() if not part.in_features % group and not part.out_features % rows}


def as_float(state: State) -> State:
    """A state dict in float32, dequantized where its tensors offer it."""
    found = {}
    for name, values in state.items():
        values = values.dequantize() if hasattr(values, "dequantize") and type(values) is not torch.Tensor else values
        found[name] = values.float().contiguous() if values.is_floating_point() else values
    return found


def write_forms(forms: dict[str, Form], model_folder: str, out: str, dequantized: str = "", *names: str) -> None:
    """Writes the forms of a model whose libraries are there.

    Args:
        forms (`dict[str, Form]`): each writes a form under a path without suffix, and returns the weights that the
            library itself dequantizes.
        model_folder (`str`): the timm model.
        out (`str`): folder for the forms.
        dequantized (`str`, *optional*): folder for the dequantized weights, in float32, as `NAME.safetensors`.
        names (`str`): the forms to write; by default all.
    """
    for folder in filter(None, (out, dequantized)):
        Path(folder).mkdir(parents=True, exist_ok=True)
    for name, make in forms.items():
        if names and name not in names:
            continue
        try:
            with torch.no_grad():
                expected = make(load_model(Path(model_folder)), Path(out) / name)
        except ImportError as error:
            print(f"{name}: skipped ({error})")
            continue
        if dequantized:
            tensors = {k: v.detach().float().contiguous() for k, v in expected.items()}
            save_file(tensors, Path(dequantized) / f"{name}.safetensors")
        print(name)
