"""Removes channels of the plain transformer of `small_models.py`, as structured pruning does."""

import numpy as np


def remove_channels(arrays: dict[str, np.ndarray], share: float, seed: int = 0) -> dict[str, np.ndarray]:
    """The arrays without a share of the residual stream's channels, and of each hidden layer's and attention's."""
    rng = np.random.default_rng(seed)

    def kept(count: int) -> np.ndarray:
        return np.sort(rng.permutation(count)[: round((1 - share) * count)])

    stream, found = kept(48), dict(arrays)
    for name in ("patch_embed.proj.weight", "conv.weight"):
        found[name] = arrays[name][stream]
    found["conv.weight"] = found["conv.weight"][:, stream]
    found["pos_embed"], found["head.weight"] = arrays["pos_embed"][..., stream], arrays["head.weight"][:, stream]
    for block in sorted({name.split(".")[1] for name in arrays if name.startswith("blocks.")}):
        values, hidden, prefix = kept(48), kept(192), f"blocks.{block}."
        fused = np.concatenate([values, values + 48, values + 96])
        norms = [name for name in arrays if name.startswith(f"{prefix}norm1.")]
        found |= {name: arrays[name][stream] for name in norms}
        found[f"{prefix}attn.qkv.weight"] = arrays[f"{prefix}attn.qkv.weight"][fused][:, stream]
        found[f"{prefix}attn.qkv.bias"] = arrays[f"{prefix}attn.qkv.bias"][fused]
        found[f"{prefix}attn.proj.weight"] = arrays[f"{prefix}attn.proj.weight"][stream][:, values]
        found[f"{prefix}mlp.fc1.weight"] = arrays[f"{prefix}mlp.fc1.weight"][hidden][:, stream]
        found[f"{prefix}mlp.fc2.weight"] = arrays[f"{prefix}mlp.fc2.weight"][stream][:, hidden]
    return {name: np.ascontiguousarray(values) for name, values in found.items() if values.size}
