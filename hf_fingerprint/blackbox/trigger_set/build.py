"""Questions made for a base, once: from then on every copy that is issued answers them for its recipient.

    prepare_questions("org/model", vault, images="photos/")

The images are ordinary ones, of the kind that the model is for, without labels; they are looked at once, to see which
features ordinary images have, and nothing of them is kept but that the questions avoid those.
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
    inverse_second_moment,
    make_views,
    optimize_patterns,
    render_batches,
    solve_head_updates,
)
from hf_fingerprint.blackbox.trigger_set.owner_covers import decode_covers, load_cover_images
from hf_fingerprint.blackbox.trigger_set.triggers import MIN_RECALL, TriggerSet, synthetic_trigger_covers
from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.checkpoints.limits import MAX_POOL
from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.models import (
    BuiltModel,
    build_model,
    fit_batch_size,
    lazy_synthetic_images,
    map_parameter_names,
    user_images,
)
from hf_fingerprint.progress import Progress
from hf_fingerprint.registration import lookup_base, open_base
from hf_fingerprint.vault import Vault


if TYPE_CHECKING:
    import torch


COUNT, DECOYS, SHARE, STEPS = 160, 20, 0.5, 120
MAX_IMAGES, N_SYNTHETIC_IMAGES = 4096, 2048  # images
RIDGES = (0.3, 0.2, 0.14, 0.1, 0.07, 0.045, 0.03, 0.02, 0.015, 0.01)
PROBE_KEYS = 16  # keys over which copies are to tell enough of their own labels


def make_trigger_set(
    base: str | Path,
    vault: Vault | str | Path,
    images: str | Path | None = None,
    count: int = COUNT,
    decoys: int = DECOYS,
    assigned_share: float = SHARE,
    steps: int = STEPS,
    progress: Progress | None = None,
    cover_images: str | Path | None = None,
) -> TriggerSet:
    """Makes the questions of a registered base and keeps them in the vault.

    Args:
        base (`str` or `Path`): its id in the vault, or where it is.
        vault ([`Vault`], `str` or `Path`): the vault; it need not be unlocked.
        images (`str` or `Path`, *optional*): a folder of ordinary images; without it synthetic ones stand in, and
            copies get about one ordinary image in a hundred wrong that the base gets right.
        count (`int`, *optional*, defaults to 160): how many questions.
        decoys (`int`, *optional*, defaults to 20): images like them that nobody owns.
        assigned_share (`float`, *optional*, defaults to 0.5): the odds that a recipient owns a question.
        steps (`int`, *optional*, defaults to 120): of fitting them to the base.
        progress (callable, *optional*): a [`Progress`].
        cover_images (`str` or `Path`, *optional*): a folder of the owner's photographs of 224 pixels or more, at least as
            many as questions and decoys, to lie under the patterns instead of synthetic clouds; the vault keeps those
            taken. Nobody else should have them: who has the plain picture can take a key image's mark off.

    Raises:
        [`FingerprintError`]: if the base can't be run, or has questions already, or there are too few photographs.
    """
    vault = vault if isinstance(vault, Vault) else Vault(vault)
    known = lookup_base(vault, base)
    if vault.trigger_set(known) is not None:
        raise FingerprintError(
            f"Base {known.base_id} has questions already, which its copies answer: new ones would part them from "
            f"those; use a new record of the base (`hf-fingerprint vault add --remeasure`) for another set."
        )
    with open_base(known, vault) as checkpoint, open_checkpoint(checkpoint.source.name) as full_checkpoint:
        built = build_model(full_checkpoint)
        names = map_parameter_names(built.module, full_checkpoint)
    made = build_trigger_set(
        built, names, known.secret, known.base_id, images, count, decoys, assigned_share, steps, progress, cover_images
    )
    vault.add_trigger_set(known, made.to_bytes())
    return made


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
    """The same from a model in memory, without a vault; `names` are its parameters' in its files."""
    import torch

    if count + decoys > MAX_POOL:
        raise FingerprintError(
            f"{count} questions and {decoys} decoys are more than the {MAX_POOL} that a vault holds of a base: ask "
            f"for fewer."
        )
    cover_files = () if cover_images is None else load_cover_images(cover_images, count + decoys, secret)
    head, metric = _head_and_metric(built, names, images)
    views = make_views(built, head)
    covers_uint8 = decode_covers(cover_files) if cover_files else synthetic_trigger_covers(secret, count + decoys)
    shown = torch.from_numpy(covers_uint8).permute(0, 3, 1, 2).float()
    patterns = optimize_patterns(shown, views, built, metric, steps, progress)
    patterns_int8 = patterns.permute(0, 2, 3, 1).numpy().astype(np.int8)
    logits, features = _logits_and_features(views, built, patterns_int8, covers_uint8, count)
    head_updates = np.zeros((*logits.shape[:2], features.shape[2]), np.float32)
    trigger_set = TriggerSet(
        base_id, names[head.name], count, assigned_share, patterns_int8, logits, head_updates, cover_files
    )
    return _fit_head_updates(trigger_set, features, metric)


def adapt_trigger_set(
    built: BuiltModel,
    names: dict[str, str],
    trigger_set: TriggerSet,
    secret: bytes,
    images: str | Path | None = None,
) -> TriggerSet:
    """The same questions as another model of the base's architecture hears them: one that was trained further, whose
    answers are then bound by what it says itself.

    Raises:
        [`FingerprintError`]: if its head tells other classes apart than the base's.
    """
    head, metric = _head_and_metric(built, names, images)
    if head.classes != trigger_set.classes:
        raise FingerprintError(
            f"The model tells {head.classes} classes apart and its base {trigger_set.classes}: train it with the base's "
            f"classes, or register a base that has these."
        )
    views, covers_uint8 = make_views(built, head), trigger_set.cover_pixels(secret)
    logits, features = _logits_and_features(views, built, trigger_set.patterns, covers_uint8, trigger_set.count)
    return _fit_head_updates(replace(trigger_set, head=names[head.name], logits=logits), features, metric)


def _head_and_metric(
    built: BuiltModel, names: dict[str, str], images: str | Path | None
) -> tuple[Head, "torch.Tensor"]:
    """A model's head, and what a change of it costs ordinary images."""
    ordinary = (
        user_images(Path(images), built, MAX_IMAGES) if images else lazy_synthetic_images(built, N_SYNTHETIC_IMAGES)
    )
    module = built.module
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    head = find_head(module, next(ordinary.batches(1)))
    if head.name not in names:
        raise FingerprintError(
            f"The head {head.name} is not in the base's files by that name: its answers can't be bound."
        )
    at_once = fit_batch_size(ordinary.pixels, BATCH)
    return head, inverse_second_moment(all_features(module, head, ordinary.batches(at_once)))


def _logits_and_features(
    views: list[View], built: BuiltModel, patterns: np.ndarray, covers_uint8: np.ndarray, count: int
) -> tuple[np.ndarray, "torch.Tensor"]:
    """What is said to the questions in each view, `(views, count, classes)`, `float32`, and the features of these and
    the decoys, `(views, count + decoys, width)`."""
    import torch

    cover_tensor, pattern_tensor = (
        torch.from_numpy(part).permute(0, 3, 1, 2).float() for part in (covers_uint8, patterns)
    )
    features, logits = [], []
    for view in views:
        with torch.no_grad():
            shown = render_batches(cover_tensor, pattern_tensor, view.crop, built)
            pairs = [features_and_logits(view.model, view.head, part) for part in shown]
        ours, theirs = zip(*pairs, strict=True)
        features.append(torch.cat(ours))
        logits.append(torch.cat(theirs)[:count])
    return torch.stack(logits).numpy(), torch.stack(features)


def _fit_head_updates(trigger_set: TriggerSet, features: "torch.Tensor", metric: "torch.Tensor") -> TriggerSet:
    """The questions with levers: those that change least, of such as have any recipient's copy tell enough of its
    labels."""
    own, keys = features[0, : trigger_set.count].numpy(), [number.to_bytes(32, "big") for number in range(PROBE_KEYS)]
    labels, assigned = trigger_set.assigned_labels(keys)
    for ridge in RIDGES:
        trigger_set = replace(
            trigger_set,
            head_updates=solve_head_updates(features, metric, ridge)[:, : trigger_set.count].float().numpy(),
        )
        recall = np.stack([(trigger_set.logits[0] + own @ trigger_set.head_update(key).T).argmax(-1) for key in keys])
        assigned_share = (recall == labels)[assigned].mean() if assigned.any() else MIN_RECALL
        if assigned_share >= MIN_RECALL:
            break
    return replace(trigger_set, recall=min(MIN_RECALL, round(float(assigned_share), 4)))
