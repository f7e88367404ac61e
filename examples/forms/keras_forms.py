"""A timm model's weights in layers of Keras 3, saved in its three formats.

    KERAS_BACKEND=jax python examples/forms/keras_forms.py MODEL_FOLDER OUT_FOLDER

The layers stand next to each other: what is saved are their weights, in Keras's shapes and under its names.
"""

import json
import sys
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
from safetensors.numpy import load_file


LARGE = 2_000  # elements of an array that is worth compressing


def main(folder: Path, out: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    out.mkdir(parents=True, exist_ok=True)
    model = make_model(weights, config)
    model.save(out / "model.keras")
    model.save_weights(out / "model.weights.h5")
    model.save(out / "legacy.h5")
    repack(out / "model.keras", out / "deflated.keras")
    with h5py.File(out / "legacy.h5") as source, h5py.File(out / "gzip.h5", "w") as target:
        source.visititems(lambda name, item: compress(name, item, target))
    model.quantize("int8")  # dense layers alone; Keras leaves convolutions
    model.save(out / "int8_stored.keras")
    repack(out / "int8_stored.keras", out / "int8.keras")
    (out / "int8_stored.keras").unlink()


def repack(source: Path, target: Path) -> None:
    with zipfile.ZipFile(source) as stored, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as deflated:
        for name in stored.namelist():
            deflated.writestr(name, stored.read(name))


def compress(name: str, item: h5py.Group | h5py.Dataset, target: h5py.File) -> None:
    if isinstance(item, h5py.Group):
        target.require_group(name).attrs.update(item.attrs)
    elif item.size > LARGE:
        target.create_dataset(name, data=item[()], compression="gzip", shuffle=True, fletcher32=True, chunks=True)
    else:
        target[name] = item[()]


def make_model(weights: dict[str, np.ndarray], config: dict) -> keras.Model:
    inputs, outputs = [], []
    for name in sorted({each.rpartition(".")[0] for each in weights}):
        own = {each.rpartition(".")[2]: value for each, value in weights.items() if each.rpartition(".")[0] == name}
        layer, values, shape = make_layer(name, own, weights, config)
        if layer is None:
            continue
        given = keras.Input(shape, name=f"{layer.name}_input")
        inputs.append(given)
        outputs.append(layer(given, given) if isinstance(layer, keras.layers.MultiHeadAttention) else layer(given))
        layer.set_weights(values)
    for name in {"pos_embed", "cls_token"} & set(weights):
        table = weights[name][0]
        given = keras.Input((len(table),), name=f"{name}_input")
        layer = keras.layers.Embedding(*table.shape, name=name)
        inputs.append(given)
        outputs.append(layer(given))
        layer.set_weights([table])
    return keras.Model(inputs, outputs)


def make_layer(
    name: str, own: dict[str, np.ndarray], weights: dict[str, np.ndarray], config: dict
) -> tuple[keras.Layer | None, list[np.ndarray], tuple]:
    """The layer, its weights, and the shape of its input; no layer for what belongs to another."""
    weight, named = own.get("weight"), {"name": name.replace(".", "_")}
    bias = [own["bias"]] if "bias" in own else []
    if weight is None or name.endswith("attn.proj"):
        return None, [], ()
    if name.endswith("attn.qkv"):
        width = weight.shape[1]
        heads = config["model_args"].get("num_heads", width // 64)
        size, proj = width // heads, name.replace("qkv", "proj")
        values = []
        for kernel, shift in zip(np.split(weight, 3), np.split(own["bias"], 3), strict=True):
            values += [kernel.T.reshape(width, heads, size), shift.reshape(heads, size)]
        values += [weights[f"{proj}.weight"].T.reshape(heads, size, width), weights[f"{proj}.bias"]]
        named = {"name": name.replace(".", "_").removesuffix("_qkv")}
        return keras.layers.MultiHeadAttention(heads, size, **named), values, (None, width)
    if "running_mean" in own:
        values = [weight, *bias, own["running_mean"], own["running_var"]]
        return keras.layers.BatchNormalization(**named), values, (None, None, len(weight))
    if weight.ndim == 1:
        return keras.layers.LayerNormalization(**named), [weight, *bias], (None, len(weight))
    if weight.ndim == 2:
        return keras.layers.Dense(len(weight), use_bias=bool(bias), **named), [weight.T, *bias], (weight.shape[1],)
    options = {"kernel_size": weight.shape[2:], "padding": "same", "use_bias": bool(bias), **named}
    if weight.shape[1] == 1 and len(weight) > 1:
        layer, kernel = keras.layers.DepthwiseConv2D(**options), weight.transpose(2, 3, 0, 1)
        return layer, [kernel, *bias], (None, None, len(weight))
    layer, kernel = keras.layers.Conv2D(len(weight), **options), weight.transpose(2, 3, 1, 0)
    return layer, [kernel, *bias], (None, None, weight.shape[1])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
