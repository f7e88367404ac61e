"""Small models, and vaults whose passphrase is fast to check."""

from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
from safetensors.numpy import load_file, save_file

from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.config import FingerprintConfig
from hf_fingerprint.issuing import Issuer
from hf_fingerprint.models import BuiltModel, build_model
from hf_fingerprint.vault import Base, Vault
from tests.helpers.quick_age import lock_quickly


PASSPHRASE = "correct horse battery staple"
SETTINGS = FingerprintConfig(coalition=3, expected_recipients=4)
WEAK_SETTINGS = FingerprintConfig(max_kl=1e-4, coalition=3, expected_recipients=4)  # training moves such a mark
PLAIN_SETTINGS = FingerprintConfig(
    coalition=3, expected_recipients=4, amplitude=0.003
)  # for models that no library builds


def new_vault(folder: Path, passphrase: str = PASSPHRASE) -> Vault:
    """Makes a vault whose identity opens fast."""
    with patch("hf_fingerprint.vault.store.encrypt_identity", lock_quickly):
        return Vault.create(folder, passphrase)


def unlocked_vault(folder: Path) -> Vault:
    """Makes an unlocked vault whose identity opens fast."""
    vault = new_vault(folder)
    vault.unlock(PASSPHRASE)
    return vault


def vault_bytes(vault: Vault) -> bytes:
    """Returns the bytes of all files of the vault, including the database's journals."""
    return b"".join(path.read_bytes() for path in sorted(vault.folder.rglob("*")) if path.is_file())


def plain_arrays(seed: int = 0, blocks: int = 4) -> dict[str, np.ndarray]:
    """Returns the weights of a transformer that no library builds, with equal blocks and tensors of every unmarked
    kind."""
    rng = np.random.default_rng(seed)

    def weights(*shape: int) -> np.ndarray:
        scale = rng.uniform(0.01, 0.1, (shape[0],) + (1,) * (len(shape) - 1))
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    arrays = {
        "patch_embed.proj.weight": weights(48, 3, 4, 4),
        "pos_embed": weights(1, 17, 48),
        "conv.weight": weights(48, 48, 3, 3),
        "bn.num_batches_tracked": np.array(1234, np.int64),
        "nothing.weight": np.zeros((0, 7), np.float32),
    }
    for i in range(blocks):
        arrays |= {
            f"blocks.{i}.norm1.weight": weights(48),
            f"blocks.{i}.attn.qkv.weight": weights(144, 48),
            f"blocks.{i}.attn.qkv.bias": weights(144),
            f"blocks.{i}.attn.proj.weight": weights(48, 48),
            f"blocks.{i}.mlp.fc1.weight": weights(192, 48),
            f"blocks.{i}.mlp.fc2.weight": weights(48, 192),
        }
    return arrays | {"head.weight": weights(10, 48), "head.bias": weights(10)}


PLAIN_CARRIERS = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight", "conv.weight")


def save_plain(folder: Path, arrays: dict[str, np.ndarray] | None = None, **others: str) -> Path:
    """Saves a model folder: weights, and other files with these names and texts (`__` for `/`, `_` for `.`)."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(plain_arrays() if arrays is None else arrays, folder / "model.safetensors", {"format": "pt"})
    for name, text in others.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


class PlainCopy(NamedTuple):
    """One issued copy of the plain model: the unlocked vault, the base, its folder, its weights and the copy's."""

    vault: Vault
    base: Base
    model: Path
    own: dict[str, np.ndarray]
    copy: dict[str, np.ndarray]


def issue_plain(root: Path) -> PlainCopy:
    """Saves the plain model, registers it in a new vault and issues one copy."""
    vault, model = unlocked_vault(root / "vault"), save_plain(root / "model")
    with Issuer(model, vault, PLAIN_SETTINGS) as issuer:
        copy = load_file(issuer.issue("alice", root / "copy").path / "model.safetensors")
        return PlainCopy(vault, issuer.base, model, plain_arrays(), copy)


def save_timm(folder: Path, architecture: str = "test_vit", seed: int = 0, **arguments: object) -> Path:
    """Saves a small timm architecture with random weights, as a folder that timm and transformers load."""
    import timm
    import torch
    from timm.models import save_for_hf

    torch.manual_seed(seed)
    model = timm.create_model(architecture, pretrained=False, **arguments)
    save_for_hf(model, folder, model_args=arguments or None, safe_serialization=True)
    return folder


def save_vit(folder: Path, seed: int = 0, **arguments: object) -> Path:
    """Saves a small transformers ViT with random weights."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(seed)
    small = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}
    config = ViTConfig(**small | {"image_size": 32, "patch_size": 8, "num_labels": 10} | arguments)
    ViTForImageClassification(config).save_pretrained(folder)
    return folder


def build(folder: Path) -> BuiltModel:
    """Returns the model in a folder, built."""
    with open_checkpoint(folder) as opened:
        return build_model(opened)


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Returns all files under a folder, with their bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names_in(folder: Path) -> list[str]:
    """Returns the names in a folder."""
    return sorted(path.name for path in folder.iterdir())
