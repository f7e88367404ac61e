"""Questions made for a base, once: from then on every copy that is issued answers them for its recipient.

    prepare_questions("org/model", vault, images="photos/")

The images are ordinary ones, of the kind that the model is for, without labels; they are looked at once, to see which
features ordinary images have, and nothing of them is kept but that the questions avoid those.
"""

from collections.abc import Callable
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
    all_seen,
    levers_of,
    metric_of,
    spread_patterns,
    views_of,
)
from hf_fingerprint.blackbox.trigger_set.owner_covers import pixels_of, read_covers
from hf_fingerprint.blackbox.trigger_set.triggers import TOLD, Questions, question_clouds
from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.checkpoints.limits import MAX_POOL
from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.models import (
    BuiltModel,
    build_model,
    images_at_once,
    many_synthetic_images,
    names_in_file,
    user_images,
)
from hf_fingerprint.registration import find_base, open_base
from hf_fingerprint.vault import Vault


if TYPE_CHECKING:
    import torch


COUNT, DECOYS, SHARE, STEPS = 160, 20, 0.5, 120
LOOKED_AT, SYNTHETIC = 4096, 2048  # images
DOUBTS = (0.3, 0.2, 0.14, 0.1, 0.07, 0.045, 0.03, 0.02, 0.015, 0.01)
TRIED = 16  # keys over which copies are to tell enough of their own labels


def prepare_questions(
    base: str | Path,
    vault: Vault | str | Path,
    images: str | Path | None = None,
    count: int = COUNT,
    decoys: int = DECOYS,
    share: float = SHARE,
    steps: int = STEPS,
    advance: Callable[[float], None] | None = None,
    covers: str | Path | None = None,
) -> Questions:
    """Makes the questions of a registered base and keeps them in the vault.

    Args:
        base (`str` or `Path`): its id in the vault, or where it is.
        vault ([`Vault`], `str` or `Path`): the vault; it need not be unlocked.
        images (`str` or `Path`, *optional*): a folder of ordinary images; without it synthetic ones stand in, and
            copies get about one ordinary image in a hundred wrong that the base gets right.
        count (`int`, *optional*, defaults to 160): how many questions.
        decoys (`int`, *optional*, defaults to 20): images like them that nobody owns.
        share (`float`, *optional*, defaults to 0.5): the odds that a recipient owns a question.
        steps (`int`, *optional*, defaults to 120): of fitting them to the base.
        advance (callable, *optional*): told the logarithm of what is left to gain, after each step.
        covers (`str` or `Path`, *optional*): a folder of the owner's photographs of 224 pixels or more, at least as
            many as questions and decoys, to lie under the patterns instead of synthetic clouds; the vault keeps those
            taken. Nobody else should have them: who has the plain picture can take a key image's mark off.

    Raises:
        [`FingerprintError`]: if the base can't be run, or has questions already, or there are too few photographs.
    """
    vault = vault if isinstance(vault, Vault) else Vault(vault)
    known = find_base(vault, base)
    if vault.questions(known) is not None:
        raise FingerprintError(
            f"Base {known.base_id} has questions already, which its copies answer: new ones would part them from "
            f"those; use a new record of the base (`hf-fingerprint vault add --remeasure`) for another set."
        )
    with open_base(known, vault) as checkpoint, open_checkpoint(checkpoint.source.name) as whole:
        built = build_model(whole)
        names = names_in_file(built.module, whole)
    made = make_questions(
        built, names, known.secret, known.base_id, images, count, decoys, share, steps, advance, covers
    )
    vault.add_questions(known, made.to_bytes())
    return made


def make_questions(
    built: BuiltModel,
    names: dict[str, str],
    secret: bytes,
    base_id: str,
    images: str | Path | None = None,
    count: int = COUNT,
    decoys: int = DECOYS,
    share: float = SHARE,
    steps: int = STEPS,
    advance: Callable[[float], None] | None = None,
    covers: str | Path | None = None,
) -> Questions:
    """The same from a model in memory, without a vault; `names` are its parameters' in its files."""
    import torch

    if count + decoys > MAX_POOL:
        raise FingerprintError(
            f"{count} questions and {decoys} decoys are more than the {MAX_POOL} that a vault holds of a base: ask "
            f"for fewer."
        )
    photographs = () if covers is None else read_covers(covers, count + decoys, secret)
    head, metric = _head_and_metric(built, names, images)
    views = views_of(built, head)
    plain = pixels_of(photographs) if photographs else question_clouds(secret, count + decoys)
    shown = torch.from_numpy(plain).permute(0, 3, 1, 2).float()
    patterns = spread_patterns(shown, views, built, metric, steps, advance)
    drawn = patterns.permute(0, 2, 3, 1).numpy().astype(np.int8)
    logits, features = _said(views, built, drawn, plain, count)
    levers = np.zeros((*logits.shape[:2], features.shape[2]), np.float32)
    asked = Questions(base_id, names[head.name], count, share, drawn, logits, levers, photographs)
    return _with_levers(asked, features, metric)


def questions_for(
    built: BuiltModel,
    names: dict[str, str],
    asked: Questions,
    secret: bytes,
    images: str | Path | None = None,
) -> Questions:
    """The same questions as another model of the base's architecture hears them: one that was trained further, whose
    answers are then bound by what it says itself.

    Raises:
        [`FingerprintError`]: if its head tells other classes apart than the base's.
    """
    head, metric = _head_and_metric(built, names, images)
    if head.classes != asked.classes:
        raise FingerprintError(
            f"The model tells {head.classes} classes apart and its base {asked.classes}: train it with the base's "
            f"classes, or register a base that has these."
        )
    views, plain = views_of(built, head), asked.plain_images(secret)
    logits, features = _said(views, built, asked.patterns, plain, asked.count)
    return _with_levers(replace(asked, head=names[head.name], logits=logits), features, metric)


def _head_and_metric(
    built: BuiltModel, names: dict[str, str], images: str | Path | None
) -> tuple[Head, "torch.Tensor"]:
    """A model's head, and what a change of it costs ordinary images."""
    ordinary = user_images(Path(images), built, LOOKED_AT) if images else many_synthetic_images(built, SYNTHETIC)
    module = built.module
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    head = find_head(module, next(ordinary.batches(1)))
    if head.name not in names:
        raise FingerprintError(
            f"The head {head.name} is not in the base's files by that name: its answers can't be bound."
        )
    at_once = images_at_once(ordinary.pixels, BATCH)
    return head, metric_of(all_features(module, head, ordinary.batches(at_once)))


def _said(
    views: list[View], built: BuiltModel, patterns: np.ndarray, plain: np.ndarray, count: int
) -> tuple[np.ndarray, "torch.Tensor"]:
    """What is said to the questions in each view, `(views, count, classes)`, `float32`, and the features of these and
    the decoys, `(views, count + decoys, width)`."""
    import torch

    under, over = (torch.from_numpy(part).permute(0, 3, 1, 2).float() for part in (plain, patterns))
    features, logits = [], []
    for view in views:
        with torch.no_grad():
            shown = all_seen(under, over, view.seen, built)
            pairs = [features_and_logits(view.model, view.head, part) for part in shown]
        ours, theirs = zip(*pairs, strict=True)
        features.append(torch.cat(ours))
        logits.append(torch.cat(theirs)[:count])
    return torch.stack(logits).numpy(), torch.stack(features)


def _with_levers(asked: Questions, features: "torch.Tensor", metric: "torch.Tensor") -> Questions:
    """The questions with levers: those that change least, of such as have any recipient's copy tell enough of its
    labels."""
    own, keys = features[0, : asked.count].numpy(), [number.to_bytes(32, "big") for number in range(TRIED)]
    labels, owned = asked.answers(keys)
    for doubt in DOUBTS:
        asked = replace(asked, levers=levers_of(features, metric, doubt)[:, : asked.count].float().numpy())
        told = np.stack([(asked.logits[0] + own @ asked.head_change(key).T).argmax(-1) for key in keys])
        share = (told == labels)[owned].mean() if owned.any() else TOLD
        if share >= TOLD:
            break
    return replace(asked, told=min(TOLD, round(float(share), 4)))
