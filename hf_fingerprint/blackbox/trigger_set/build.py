"""Builds the trigger set of a base. Every copy issued afterwards predicts its recipient's labels on it.

    make_trigger_set("org/model", vault, images="photos/")

`images` holds ordinary images of the model's domain, without labels. They are read once, to measure the features of
ordinary images, which the trigger images avoid; none of them is stored.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_fingerprint.blackbox.trigger_set.classifier_head import (
    BATCH,
    Head,
    all_features,
    features_and_logits,
    find_head,
)
from hf_fingerprint.blackbox.trigger_set.optimize import (
    View,
    fold_views,
    inverse_second_moment,
    make_views,
    optimize_patterns,
    solve_head_updates,
)
from hf_fingerprint.blackbox.trigger_set.photographs import decode_photographs, load_photographs
from hf_fingerprint.blackbox.trigger_set.rendering import Renderer
from hf_fingerprint.blackbox.trigger_set.triggers import MIN_RECALL, TriggerSet, synthetic_cover_images
from hf_fingerprint.checkpoints import Checkpoint, HubOptions, open_checkpoint
from hf_fingerprint.checkpoints.limits import MAX_POOL
from hf_fingerprint.checkpoints.memory import ModelInput
from hf_fingerprint.checkpoints.renamed import RenamedCheckpoint
from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.models import (
    BuiltModel,
    build_model,
    device_of,
    fit_batch_size,
    float64_device,
    lazy_synthetic_images,
    map_parameter_names,
    synthetic_images,
    user_images,
)
from hf_fingerprint.progress import Progress, shows_progress
from hf_fingerprint.registration import lookup_base, open_base
from hf_fingerprint.registration.content import match_base
from hf_fingerprint.vault import Base, Vault


if TYPE_CHECKING:
    import torch
    from torch import Tensor

COUNT, DECOYS, SHARE, STEPS = 160, 20, 0.5, 120
MAX_IMAGES, N_SYNTHETIC = 4096, 2048  # images
RIDGES = (0.3, 0.2, 0.14, 0.1, 0.07, 0.045, 0.03, 0.02, 0.015, 0.01)
PROBE_KEYS = 16  # keys over which the recall is averaged


@shows_progress
def make_trigger_set(
    base: ModelInput,
    vault: Vault | str | Path,
    images: str | Path | None = None,
    count: int = COUNT,
    decoys: int = DECOYS,
    assigned_share: float = SHARE,
    steps: int = STEPS,
    progress: Progress | None = None,
    cover_images: str | Path | None = None,
    *,
    device: "str | torch.device | None" = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
) -> TriggerSet:
    """Builds the trigger set of a registered base and stores it in the vault.

    Args:
        base (`str`, `Path`, `torch.nn.Module` or mapping of `str` to `torch.Tensor`): the base: its id in the vault, a
            path, a Hub id, or a module.
        vault ([`Vault`], `str` or `Path`): the vault; it need not be unlocked.
        images (`str` or `Path`, *optional*): a folder of ordinary images. With synthetic images, the default, copies
            misclassify about one in a hundred ordinary images that the base classifies correctly.
        count (`int`, *optional*, defaults to 160): the number of trigger images.
        decoys (`int`, *optional*, defaults to 20): the number of similar images that are assigned to nobody.
        assigned_share (`float`, *optional*, defaults to 0.5): the probability that a recipient is assigned a trigger.
        steps (`int`, *optional*, defaults to 120): optimization steps of the patterns.
        progress (callable, *optional*): a [`Progress`].
        cover_images (`str` or `Path`, *optional*): a folder of your own photographs of 224 pixels or more, at least as
            many as trigger images and decoys, to use as covers instead of synthetic images. The vault stores those
            used. Keep them private: the cover is what removes the mark from a key image.
        device (`str` or `torch.device`, *optional*): where the base runs and the images are fitted, such as `"cuda"`.
            Defaults to the CPU. Only the CPU was tested.
        revision, token, cache_dir, subfolder, variant (*optional*): which files of a base given by path or Hub id, and
            how to reach it; see [`HubOptions`].

    Raises:
        [`FingerprintError`]: if the base can't be run or has a trigger set already, or there are too few photographs.
    """
    vault = vault if isinstance(vault, Vault) else Vault(vault)
    options = HubOptions.for_model(base, revision, token, cache_dir, subfolder, variant)
    record = lookup_base(vault, base, options)
    if vault.trigger_set(record) is not None:
        raise FingerprintError(
            f"Base {record.base_id} already has a trigger set, which its copies are issued with: to build another, "
            f"register a new record of the base (`hf-fingerprint vault add --remeasure`)."
        )
    with _open_to_build(base, record, vault, options) as checkpoint:
        built = build_model(checkpoint, device)
        names = map_parameter_names(built.module, checkpoint)
    chosen = images, count, decoys, assigned_share, steps, progress, cover_images
    trigger_set = build_trigger_set(built, names, record.secret, record.base_id, *chosen)
    vault.add_trigger_set(record, trigger_set.to_bytes())
    return trigger_set


def _open_to_build(base: ModelInput, record: Base, vault: Vault, options: HubOptions) -> Checkpoint:
    """A base under the tensor names of its record, from memory if it is there, else from all of its files."""
    if not isinstance(base, str | Path):
        live = open_checkpoint(base)
        return RenamedCheckpoint(live, match_base(live, record, vault))
    with open_base(record, vault, options) as weights:
        return open_checkpoint(weights.source.location, options=options.access)


def build_trigger_set(
    built: BuiltModel,
    names: dict[str, str],
    secret: bytes,
    base_id: str,
    images: str | Path | None = None,
    count: int = COUNT,
    decoys: int = DECOYS,
    assigned_share: float = SHARE,
    steps: int = STEPS,
    progress: Progress | None = None,
    cover_images: str | Path | None = None,
) -> TriggerSet:
    """The trigger set of a model in memory; see [`make_trigger_set`].

    Args:
        built ([`BuiltModel`]): the model.
        names (`dict[str, str]`): from the model's parameters to the tensors of its files.
        secret (`bytes`): the model secret.
        base_id (`str`): the base's id in the vault.
        images, count, decoys, assigned_share, steps, progress, cover_images: see [`make_trigger_set`].
    """
    import torch

    if count + decoys > MAX_POOL:
        limit = f"the {MAX_POOL} images that a vault holds for a base"
        raise FingerprintError(f"{count} trigger images and {decoys} decoys are more than {limit}: choose fewer.")
    cover_files = () if cover_images is None else load_photographs(cover_images, count + decoys, secret)
    head, metric = _head_and_metric(built, names, images)
    views = make_views(built, head)
    cover_pixels = decode_photographs(cover_files) if cover_files else synthetic_cover_images(secret, count + decoys)
    cover_tensor = torch.from_numpy(cover_pixels).permute(0, 3, 1, 2).float()
    quicker = fold_views(views, synthetic_images(built, 2))
    fitted = optimize_patterns(cover_tensor, quicker, built, metric, steps, progress)
    patterns = fitted.permute(0, 2, 3, 1).numpy().astype(np.int8)
    logits, features = _logits_and_features(views, built, patterns, cover_pixels, count)
    updates = np.zeros((*logits.shape[:2], features.shape[2]), np.float32)
    head_name = names[head.name]
    trigger_set = TriggerSet(base_id, head_name, count, assigned_share, patterns, logits, updates, cover_files)
    return _fit_head_updates(trigger_set, features, metric)


def adapt_trigger_set(
    built: BuiltModel, names: dict[str, str], trigger_set: TriggerSet, secret: bytes, images: str | Path | None = None
) -> TriggerSet:
    """The trigger set measured anew on another model of the base's architecture, such as one trained further.

    Args:
        built, names, secret, images: see [`build_trigger_set`].
        trigger_set ([`TriggerSet`]): the base's.

    Raises:
        [`FingerprintError`]: if the model has another number of classes than the base.
    """
    head, metric = _head_and_metric(built, names, images)
    if head.classes != trigger_set.classes:
        problem = f"The model has {head.classes} classes and its base {trigger_set.classes}"
        raise FingerprintError(f"{problem}: train it with the base's classes, or register a base that has these.")
    views, cover_pixels = make_views(built, head), trigger_set.cover_pixels(secret)
    logits, features = _logits_and_features(views, built, trigger_set.patterns, cover_pixels, trigger_set.count)
    return _fit_head_updates(replace(trigger_set, head=names[head.name], logits=logits), features, metric)


def _head_and_metric(built: BuiltModel, names: dict[str, str], images: str | Path | None) -> tuple[Head, "Tensor"]:
    """A model's head, and the inverse second moment of the features of ordinary images."""
    ordinary = user_images(Path(images), built, MAX_IMAGES) if images else lazy_synthetic_images(built, N_SYNTHETIC)
    module = built.module
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    head = find_head(module, next(ordinary.batches(1)))
    if head.name not in names:
        problem = f"The files of the base have no tensor for its head {head.name}, so its copies can't learn labels"
        raise FingerprintError(f"{problem}: use a base whose files hold its head.")
    batches = ordinary.batches(fit_batch_size(ordinary.pixels, BATCH))
    return head, inverse_second_moment(all_features(module, head, batches))


def _logits_and_features(
    views: list[View], built: BuiltModel, patterns: np.ndarray, cover_pixels: np.ndarray, count: int
) -> tuple[np.ndarray, "Tensor"]:
    """The logits of the trigger images in each view, `(views, count, classes)`, `float32`, and the features of all
    images, `(views, count + decoys, width)`, where [`features_and_logits`] leaves them."""
    import torch

    place = float64_device(device_of(built.module))
    cover, pattern = (torch.from_numpy(x).permute(0, 3, 1, 2).to(place).float() for x in (cover_pixels, patterns))
    features, logits = [], []
    for view in views:
        with torch.no_grad():
            batches = Renderer(view.crop, built, pattern).render_batches(cover, pattern)
            pairs = [features_and_logits(view.model, view.head, batch) for batch in batches]
        batch_features, batch_logits = zip(*pairs, strict=True)
        features.append(torch.cat(batch_features))
        logits.append(torch.cat(batch_logits)[:count])
    return torch.stack(logits).cpu().numpy(), torch.stack(features)


def _fit_head_updates(trigger_set: TriggerSet, features: "Tensor", metric: "Tensor") -> TriggerSet:
    """The trigger set with head updates, at the strongest ridge at which copies predict 90 % of their labels."""
    own = features[0, : trigger_set.count].cpu().numpy()
    keys = [number.to_bytes(32, "big") for number in range(PROBE_KEYS)]
    labels, assigned = trigger_set.assigned_labels(keys)
    for ridge in RIDGES:
        updates = solve_head_updates(features, metric, ridge)[:, : trigger_set.count].float().cpu().numpy()
        trigger_set = replace(trigger_set, head_updates=updates)
        logits = [trigger_set.logits[0] + own @ trigger_set.head_update(key).T for key in keys]
        predicted = np.stack([each.argmax(-1) for each in logits])
        recall = (predicted == labels)[assigned].mean() if assigned.any() else MIN_RECALL
        if recall >= MIN_RECALL:
            break
    return replace(trigger_set, recall=min(MIN_RECALL, round(float(recall), 4)))
