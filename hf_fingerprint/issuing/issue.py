"""Issues one copy of a model: to a folder, or in memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from hf_fingerprint.checkpoints import HubOptions
from hf_fingerprint.checkpoints.memory import ModelInput, ModuleT
from hf_fingerprint.config import FingerprintConfig
from hf_fingerprint.errors import CheckpointError
from hf_fingerprint.issuing.issued import IssuedCopy
from hf_fingerprint.issuing.issuer import Issuer
from hf_fingerprint.progress import Progress, shows_progress
from hf_fingerprint.registration import AncestorInput
from hf_fingerprint.vault import Vault


if TYPE_CHECKING:
    import torch


@overload
def issue(
    model: ModelInput,
    recipient: str,
    vault: Vault | str | Path,
    out: str | Path,
    config: FingerprintConfig | None = None,
    *,
    include_code: bool = False,
    as_base: bool = False,
    base: ModelInput | None = None,
    ancestor: AncestorInput = None,
    progress: Progress | None = None,
    device: "str | torch.device | None" = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
) -> IssuedCopy: ...


@overload
def issue(
    model: "Mapping[str, torch.Tensor]",
    recipient: str,
    vault: Vault | str | Path,
    out: None = None,
    config: FingerprintConfig | None = None,
    *,
    include_code: bool = False,
    as_base: bool = False,
    base: ModelInput | None = None,
    ancestor: AncestorInput = None,
    progress: Progress | None = None,
    device: "str | torch.device | None" = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> "dict[str, torch.Tensor]": ...


@overload
def issue(
    model: ModuleT,
    recipient: str,
    vault: Vault | str | Path,
    out: None = None,
    config: FingerprintConfig | None = None,
    *,
    include_code: bool = False,
    as_base: bool = False,
    base: ModelInput | None = None,
    ancestor: AncestorInput = None,
    progress: Progress | None = None,
    device: "str | torch.device | None" = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> ModuleT: ...


@shows_progress
def issue(
    model: ModelInput,
    recipient: str,
    vault: Vault | str | Path,
    out: str | Path | None = None,
    config: FingerprintConfig | None = None,
    *,
    include_code: bool = False,
    as_base: bool = False,
    base: ModelInput | None = None,
    ancestor: AncestorInput = None,
    progress: Progress | None = None,
    device: "str | torch.device | None" = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
) -> Any:
    """Issues one copy, and registers the base first if the vault doesn't hold it.

    ```python
    issue("org/model", "alice", "vault", "copies/alice")  # a folder
    marked = issue(model, "alice", "vault")  # a module like `model`, which is not changed
    ```

    Args:
        model (`str`, `Path`, `torch.nn.Module` or mapping of `str` to `torch.Tensor`): the base: a folder, a file, a
            Hub id, a module or a state dict.
        recipient (`str`): the recipient's name.
        vault ([`Vault`], `str` or `Path`): the vault; it need not be unlocked.
        out (`str` or `Path`, *optional*): the folder of the copy, which must not exist yet. A timm or transformers
            module is saved there by its library, another one or a state dict as `model.safetensors`. Without it, a
            module or a state dict is copied in memory.
        config ([`FingerprintConfig`], *optional*): for the registration of a new base.
        include_code (`bool`, *optional*, defaults to `False`): whether to copy the model's `.py` files.
        as_base (`bool`, *optional*, defaults to `False`): whether to register a copy as a base; see [`register`].
        base (`str`, `Path`, `torch.nn.Module` or mapping, *optional*): the base's own files, if `model` is what a
            library loaded from them. They are registered, so a trace needs no module; `model` must have their weights.
        ancestor (`str`, `Path`, `torch.nn.Module`, mapping or `False`, *optional*): the public model that the base was
            fine-tuned from; see [`register`].
        progress (callable, *optional*): a [`Progress`].
        device, revision, token, cache_dir, subfolder, variant (*optional*): see [`register`]. A model in memory has no
            revision, subfolder and variant.

    Returns:
        [`IssuedCopy`], with `out`; else a marked copy of the module (without wrappers such as DDP), on its device and
        in its mode, or a marked state dict. Each call without `out` marks and records another copy.

    Raises:
        [`FingerprintError`]: if the base can't be registered or the copy can't be written.
    """
    vault = vault if isinstance(vault, Vault) else Vault(vault)
    if out is None and isinstance(model, str | Path):
        raise CheckpointError(f"A copy of {model} needs a folder: give it as out (--out).")
    chosen = HubOptions.for_model(model, revision, token, cache_dir, subfolder, variant).keywords
    chosen |= {"base": base, "ancestor": ancestor, "device": device}
    with Issuer(model, vault, config, progress, include_code, as_base, **chosen) as issuer:
        if out is None:
            return issuer.issue_in_memory(recipient, progress)
        return issuer.issue(recipient, Path(out), progress)
