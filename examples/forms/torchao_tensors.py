"""A timm model's weights as torchao's tensors, in safetensors and in pickles.

    python examples/forms/torchao_tensors.py MODEL_FOLDER OUT_FOLDER [DEQUANTIZED_FOLDER [NAME ...]]

`torchao_tensors.txt` pins the libraries; forms of other versions are skipped.
"""

import sys
from pathlib import Path

import torch
from quantized_models import State, as_float, linears, write_forms
from safetensors.torch import save_file
from torch import nn


def torchao_state(model: nn.Module, config: object, convolutions: bool = False) -> State:
    """The state dict of a model that torchao quantizes."""
    from torchao.quantization import quantize_

    kinds = nn.Linear | nn.Conv2d if convolutions else nn.Linear
    quantize_(model, config, filter_fn=lambda part, _: isinstance(part, kinds))
    return {
        name: values.detach() if type(values) is nn.Parameter else values
        for name, values in model.state_dict().items()
    }


def torchao_safetensors(model: nn.Module, out: Path, config: object, dtype: torch.dtype = torch.float32) -> State:
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    state = torchao_state(model.to(dtype), config)
    tensors, metadata = flatten_tensor_state_dict({name: plain(values) for name, values in state.items()})
    save_file(tensors, out.with_suffix(".safetensors"), metadata)
    return as_float(state)


def plain(values: torch.Tensor) -> torch.Tensor:
    """A parameter as a tensor; subclasses stay."""
    return values.data if isinstance(values, nn.Parameter) else values


def torchao_pickle(model: nn.Module, out: Path, config: object) -> State:
    state = torchao_state(model, config)
    torch.save(state, out.with_suffix(".pth"))
    return as_float(state)


def torchao_int8(model: nn.Module, out: Path) -> State:
    from torchao.quantization import Int8WeightOnlyConfig

    return torchao_safetensors(model, out, Int8WeightOnlyConfig(version=2))


def torchao_int8_dynamic(model: nn.Module, out: Path) -> State:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    return torchao_pickle(model, out, Int8DynamicActivationInt8WeightConfig(version=2))


def torchao_float8(model: nn.Module, out: Path) -> State:
    from torchao.quantization import Float8WeightOnlyConfig

    return torchao_safetensors(model, out, Float8WeightOnlyConfig(version=2))


def torchao_float8_pickle(model: nn.Module, out: Path) -> State:
    from torchao.quantization import Float8WeightOnlyConfig

    return torchao_pickle(model, out, Float8WeightOnlyConfig(version=2))


def torchao_intx(model: nn.Module, out: Path) -> State:
    from torchao.quantization import IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerGroup

    return torchao_safetensors(model, out, IntxWeightOnlyConfig(torch.int4, granularity=PerGroup(16), version=2))


def torchao_nf4(model: nn.Module, out: Path) -> State:
    from torchao.quantization import to_nf4

    state = dict(model.state_dict())
    for name, part in linears(model, 64, rows=8).items():
        state[f"{name}.weight"] = to_nf4(part.weight.detach(), 64, 4)
    torch.save(state, out.with_suffix(".pth"))
    return {
        name: values.get_original_weight().float() if hasattr(values, "get_original_weight") else values
        for name, values in state.items()
    }


def torchao_int4_tiles(model: nn.Module, out: Path) -> State:
    """The layout of tinygemm, which torchao packs on a GPU alone: packed by PyTorch's kernel if there is one."""
    if not torch.cuda.is_available():
        raise ImportError("needs a GPU")
    from torchao.quantization import Int4WeightOnlyConfig

    config = Int4WeightOnlyConfig(group_size=32, int4_packing_format="tile_packed_to_4d")
    return torchao_safetensors(model.cuda(), out, config, torch.bfloat16)


def affine_quantized(model: nn.Module, out: Path) -> State:
    """torchao before version 0.12: subclasses in a pickle."""
    from torchao.quantization import int8_weight_only

    state = torchao_state(model, int8_weight_only())
    torch.save(state, out.with_suffix(".pth"))
    return as_float(state)


def affine_quantized_int4(model: nn.Module, out: Path) -> State:
    from torchao.quantization import uintx_weight_only

    state = torchao_state(model, uintx_weight_only(torch.uint4, group_size=16))
    torch.save(state, out.with_suffix(".pth"))
    return as_float(state)


FORMS = {
    made.__name__: made
    for made in (
        torchao_int8, torchao_int8_dynamic, torchao_float8, torchao_float8_pickle, torchao_intx, torchao_nf4,
        torchao_int4_tiles, affine_quantized, affine_quantized_int4,
    )
}  # fmt: skip

if __name__ == "__main__":
    write_forms(FORMS, *sys.argv[1:])
