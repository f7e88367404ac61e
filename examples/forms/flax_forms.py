"""A timm model's weights as Flax keeps them: a .msgpack file, and the .npz files of Google's Vision Transformers.

python examples/forms/flax_forms.py MODEL_FOLDER OUT_FOLDER
"""

import json
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
from flax.serialization import msgpack_serialize
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file


def main(folder: Path, out: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    out.mkdir(parents=True, exist_ok=True)
    flat = dict(each for name, value in weights.items() for each in renamed(name, value, config))
    tree = {"params": unflatten_dict(flat, sep="/"), "step": 3}
    (out / "flax.msgpack").write_bytes(msgpack_serialize(tree))
    half = {name: value.astype(ml_dtypes.bfloat16) for name, value in flat.items()}
    np.savez(out / "google_bf16.npz", **half)
    np.savez(out / "flax.npz", **flat)
    np.savez_compressed(out / "compressed.npz", **{name: np.asfortranarray(value) for name, value in weights.items()})


def renamed(name: str, value: np.ndarray, config: dict) -> list[tuple[str, np.ndarray]]:
    """A tensor under the names of Flax and in its shapes: three for fused projections of attention."""
    layer, _, part = name.rpartition(".")
    layer = layer.replace("blocks.", "Transformer/encoderblock_").replace(".mlp.fc", "/MlpBlock/Dense_")
    layer = layer.replace(".norm", "/LayerNorm_").replace("patch_embed.proj", "embedding").replace(".", "/")
    if layer.endswith(("attn/qkv", "attn/proj")):
        width = value.shape[-1] if part == "weight" else len(value)
        width = width // 3 if layer.endswith("qkv") and part == "bias" else width
        heads = config["model_args"].get("num_heads", width // 64)
        layer, split = layer.removesuffix("/qkv").removesuffix("/proj"), [heads, width // heads]
        layer = layer.replace("attn", "MultiHeadDotProductAttention_1")
        if "proj" in name:
            return [(f"{layer}/out/bias", value)] if part == "bias" else [
                (f"{layer}/out/kernel", value.T.reshape(*split, width))
            ]  # fmt: skip
        return [
            (f"{layer}/{each}/bias", own.reshape(split))
            if part == "bias"
            else (f"{layer}/{each}/kernel", np.ascontiguousarray(own.T).reshape(width, *split))
            for each, own in zip(("query", "key", "value"), np.split(value, 3), strict=True)
        ]
    if part == "weight" and value.ndim > 1:
        order = (2, 3, 1, 0) if value.ndim == 4 else (1, 0)
        return [(f"{layer}/kernel", np.ascontiguousarray(value.transpose(order)))]
    part = {"weight": "scale", "running_mean": "mean", "running_var": "var"}.get(part, part)
    return [(f"{layer}/{part}" if layer else part, value)]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
