"""A timm model's weights as integers with scales, as the quantization libraries for PyTorch save them.

    python examples/forms/integer_schemes.py MODEL_FOLDER OUT_FOLDER [DEQUANTIZED_FOLDER [NAME ...]]

`integer_schemes.txt` pins the libraries; those that are missing are skipped.
"""

import sys
from pathlib import Path

import torch
from quantized_models import State, as_float, linears, write_forms
from safetensors.torch import save_file
from torch import nn


def replace(model: nn.Module, name: str, part: nn.Module) -> None:
    owner, _, own = name.rpartition(".")
    setattr(model.get_submodule(owner), own, part)


def bitsandbytes_int8(model: nn.Module, out: Path) -> State:
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    expected = dict(model.state_dict())
    for name, part in linears(model).items():
        made = Linear8bitLt(part.in_features, part.out_features, part.bias is not None, has_fp16_weights=False)
        made.weight = Int8Params(part.weight.data.half(), requires_grad=False, has_fp16_weights=False)
        made.bias = part.bias
        replace(model, name, made.to("cpu"))
        scale = made.state.SCB if made.state.SCB is not None else made.weight.SCB
        expected[f"{name}.weight"] = made.weight.data.float() * scale.float()[:, None] / 127
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, out.with_suffix(".safetensors"))
    return expected


def blocks_of_4_bits(weight: torch.Tensor) -> torch.Tensor:
    """The values of a weight; the library's own kernel for CPUs takes rows that are no whole blocks for such."""
    from bitsandbytes.functional import dequantize_blockwise

    state, raw = weight.quant_state, weight.data.reshape(-1)
    largest = dequantize_blockwise(state.absmax, state.state2) + state.offset if state.nested else state.absmax
    codes = torch.stack([raw >> 4, raw & 15], 1).reshape(-1)[: state.shape.numel()].int()
    return (state.code[codes] * largest.repeat_interleave(state.blocksize)[: len(codes)]).reshape(state.shape)


def bitsandbytes_4bit(model: nn.Module, out: Path, kind: str, nested: bool) -> State:
    from bitsandbytes.nn import Linear4bit

    expected = dict(model.state_dict())
    for name, part in linears(model).items():
        made = Linear4bit(
            part.in_features, part.out_features, part.bias is not None, quant_type=kind, compress_statistics=nested
        )
        made.load_state_dict(part.state_dict())
        replace(model, name, made.to("cpu"))
        expected[f"{name}.weight"] = blocks_of_4_bits(made.weight)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, out.with_suffix(".safetensors"))
    return expected


def bitsandbytes_nf4(model: nn.Module, out: Path) -> State:
    return bitsandbytes_4bit(model, out, "nf4", nested=True)


def bitsandbytes_fp4(model: nn.Module, out: Path) -> State:
    return bitsandbytes_4bit(model, out, "fp4", nested=False)


def quanto(model: nn.Module, out: Path, kind: str) -> State:
    import optimum.quanto as library

    library.quantize(model, weights=getattr(library, kind))
    library.freeze(model)
    expected = {k: v.float() for k, v in as_float(dict(model.state_dict())).items() if "._" not in k}
    for name, part in model.named_modules():
        if isinstance(getattr(part, "weight", None), library.QTensor):
            expected[f"{name}.weight"] = part.weight.dequantize().detach().float()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, out.with_suffix(".safetensors"))
    return {k: v for k, v in expected.items() if not k.endswith(("put_scale",))}


def quanto_qint8(model: nn.Module, out: Path) -> State:
    return quanto(model, out, "qint8")


def quanto_qint4(model: nn.Module, out: Path) -> State:
    return quanto(model, out, "qint4")


def quanto_qint2(model: nn.Module, out: Path) -> State:
    return quanto(model, out, "qint2")


def quanto_qfloat8(model: nn.Module, out: Path) -> State:
    return quanto(model, out, "qfloat8_e4m3fn")


def hqq(model: nn.Module, bits: int, axis: int, group: int, encoded: bool) -> tuple[State, State]:
    """The state dicts of a model that HQQ quantizes, and of what it dequantizes."""
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    expected, state = dict(model.state_dict()), dict(model.state_dict())
    for name, part in linears(model, group, rows=8).items():
        config = BaseQuantizeConfig(nbits=bits, group_size=group, axis=axis)
        made = HQQLinear(part, config, compute_dtype=torch.float32, device="cpu", del_orig=False)
        made.encoded_state_dict = encoded
        del state[f"{name}.weight"]
        state |= {f"{name}.{key}": values for key, values in made.state_dict().items()}
        expected[f"{name}.weight"] = made.dequantize().detach().float().clone()
    return state, expected


def hqq_4bit(model: nn.Module, out: Path) -> State:
    state, expected = hqq(model, bits=4, axis=1, group=16, encoded=True)
    save_file({k: v.contiguous() for k, v in state.items()}, out.with_suffix(".safetensors"))
    return expected


def hqq_3bit(model: nn.Module, out: Path) -> State:
    state, expected = hqq(model, bits=3, axis=1, group=16, encoded=True)
    save_file({k: v.contiguous() for k, v in state.items()}, out.with_suffix(".safetensors"))
    return expected


def hqq_4bit_nested(model: nn.Module, out: Path) -> State:
    """What `AutoHQQHFModel.save_quantized` writes: a dictionary of each layer's dictionary."""
    state, expected = hqq(model, bits=4, axis=0, group=16, encoded=False)
    nested: dict[str, object] = {name: values for name, values in state.items() if "." not in name}
    for name, values in state.items():
        layer, _, own = name.rpartition(".")
        if layer:
            nested.setdefault(layer, {})[own] = values
    torch.save(nested, out.with_suffix(".pt"))
    return expected


def compressed(model: nn.Module, out: Path, group: int = 1, compression: str = "", **weights: object) -> State:
    """What llm-compressor and vLLM use: each linear layer is calibrated by its own range, and compressed."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))
    compressor = BaseCompressor.get_value_from_registry(compression)
    state = dict(model.state_dict())
    expected = dict(state)
    for name, part in linears(model, group, rows=8).items():
        weight, extra = part.weight.detach(), {}
        grouped = weight.unflatten(1, (-1, group)) if group > 1 else weight[:, None]
        if weights["strategy"] == "tensor_group":
            extra["weight_global_scale"] = generate_gparam(weight.amin(), weight.amax()).reshape(1)
        low, high = grouped.amin(-1), grouped.amax(-1)
        scale, zero = calculate_qparams(low, high, scheme.weights, global_scale=extra.get("weight_global_scale"))
        tensors = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero, **extra}
        packed = compressor.compress(tensors, scheme)
        del state[f"{name}.weight"]
        state |= {f"{name}.{key}": values.contiguous() for key, values in packed.items()}
        expected[f"{name}.weight"] = compressor.decompress(packed, scheme)["weight"].float()
    save_file(state, out.with_suffix(".safetensors"))
    return expected


def compressed_int8(model: nn.Module, out: Path) -> State:
    return compressed(model, out, 1, "int-quantized", num_bits=8, strategy="channel", symmetric=True)


def compressed_float8(model: nn.Module, out: Path) -> State:
    return compressed(model, out, 1, "float-quantized", num_bits=8, type="float", strategy="channel", symmetric=True)


def compressed_int4(model: nn.Module, out: Path) -> State:
    return compressed(model, out, 16, "pack-quantized", num_bits=4, strategy="group", group_size=16, symmetric=False)


def compressed_int3(model: nn.Module, out: Path) -> State:
    return compressed(model, out, 1, "pack-quantized", num_bits=3, strategy="channel", symmetric=True)


def compressed_nvfp4(model: nn.Module, out: Path) -> State:
    args = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "symmetric": True}
    return compressed(model, out, 16, "nvfp4-pack-quantized", scale_dtype="float8_e4m3fn", **args)


def compressed_mxfp4(model: nn.Module, out: Path) -> State:
    args = {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32, "symmetric": True}
    return compressed(model, out, 32, "mxfp4-pack-quantized", scale_dtype="uint8", **args)


def mlx(model: nn.Module, out: Path, bits: int, group: int) -> State:
    import mlx.core as mx
    import numpy as np

    state = {name: mx.array(values.numpy()) for name, values in model.state_dict().items()}
    expected = dict(model.state_dict())
    for name, part in linears(model, group).items():
        found = mx.quantize(mx.array(part.weight.detach().numpy()), group_size=group, bits=bits)
        state |= dict(zip((f"{name}.weight", f"{name}.scales", f"{name}.biases"), found, strict=True))
        expected[f"{name}.weight"] = torch.from_numpy(
            np.array(mx.dequantize(*found, group_size=group, bits=bits), np.float32)
        )
    mx.save_safetensors(str(out.with_suffix(".safetensors")), state, {"format": "mlx"})
    return expected


def mlx_4bit(model: nn.Module, out: Path) -> State:
    return mlx(model, out, 4, 32)


def mlx_3bit(model: nn.Module, out: Path) -> State:
    return mlx(model, out, 3, 32)


FORMS = {
    made.__name__: made
    for made in (
        bitsandbytes_int8, bitsandbytes_nf4, bitsandbytes_fp4, quanto_qint8, quanto_qint4, quanto_qint2,
        quanto_qfloat8, hqq_4bit, hqq_3bit, hqq_4bit_nested, compressed_int8, compressed_float8, compressed_int4,
        compressed_int3, compressed_nvfp4, compressed_mxfp4, mlx_4bit, mlx_3bit,
    )
}  # fmt: skip

if __name__ == "__main__":
    write_forms(FORMS, *sys.argv[1:])
