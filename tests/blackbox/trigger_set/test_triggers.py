import hashlib
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from hf_fingerprint.blackbox.trigger_set.triggers import (
    GRID,
    MARGIN,
    MIN_RECALL,
    TriggerSet,
    add_pattern,
    synthetic_cover_images,
)
from hf_fingerprint.errors import VaultError


SECRET, KEYS = bytes(range(32)), [i.to_bytes(32, "big") for i in range(40)]
GOLDEN_FORMAT = "ff6f4a1d3a1c1ac44e764f6e3a0d1801dc28c65e8251fd18133a1216c3944b51"
GOLDEN_FORMAT_WITH_PHOTOGRAPHS = "e7c1819ccd994a52efeb805fc91e1b7fe17691e42b732dfd939333965407c769"
GOLDEN_IMAGE = "1bc2567d8b3e0f80aec530503faccca0505ec9b06f3db17e2c5fcd97b138911a"


def some(views: int = 2, count: int = 6, decoys: int = 2, classes: int = 10, width: int = 50) -> TriggerSet:
    """A trigger set with random features of a fixed seed, and head updates that raise a logit by one."""
    rng = np.random.default_rng(0)
    features = rng.integers(-8, 9, (views * count, width)).astype(float)
    head_updates = np.linalg.solve(features @ features.T, features).astype(np.float32)
    return TriggerSet(
        base_id="0123456789ab",
        head="classifier.weight",
        count=count,
        assigned_share=0.5,
        patterns=rng.integers(-90, 91, (count + decoys, GRID, GRID, 3)).astype(np.int8),
        logits=rng.integers(-3, 4, (views, count, classes)).astype(np.float32),
        head_updates=head_updates.reshape(views, count, width),
    )


def png(seed: int) -> bytes:
    """A PNG file of a fixed random picture, byte for byte the same with every library."""
    pixels = np.random.default_rng(seed).integers(0, 256, (224, 224, 3), np.uint8)
    lines = b"".join(b"\0" + line.tobytes() for line in pixels)
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", 224, 224, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(lines, 0)),
        (b"IEND", b""),
    ]
    file = [struct.pack(">I", len(data)) + k + data + struct.pack(">I", zlib.crc32(k + data)) for k, data in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(file)


def with_photographs(files: int = 8) -> TriggerSet:
    return replace(some(), cover_images=tuple(png(seed) for seed in range(files)))


def features_of(trigger_set: TriggerSet) -> np.ndarray:
    """The features that the head updates of `some` were solved from, `(views, count, width)`."""
    flat = trigger_set.head_updates.reshape(-1, trigger_set.head_updates.shape[-1]).astype(float)
    return np.linalg.pinv(flat).T.reshape(trigger_set.head_updates.shape)


def same(one: TriggerSet, other: TriggerSet) -> bool:
    plain = [replace(each, patterns=0, logits=0, head_updates=0) for each in (one, other)]
    return plain[0] == plain[1] and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in ("patterns", "logits", "head_updates")
    )


@pytest.mark.parametrize("key", KEYS[:20])
def test_a_copy_predicts_its_labels_on_assigned_triggers_and_the_base_s_on_the_rest(key):
    trigger_set = some()
    recall = trigger_set.logits + features_of(trigger_set) @ trigger_set.head_update(key).T
    (labels,), (assigned,) = trigger_set.assigned_labels([key])

    own = np.take_along_axis(recall, np.broadcast_to(labels[:, None], (2, 6, 1)).astype(int), -1)[..., 0]
    rest = np.where(np.arange(10) == labels[:, None], -np.inf, recall).max(-1)
    assert (own - rest)[:, assigned].min() >= MARGIN - 1e-4
    assert np.allclose(recall[:, ~assigned], trigger_set.logits[:, ~assigned], atol=1e-4)


def test_who_owns_nothing_changes_nothing():
    trigger_set = replace(some(), assigned_share=1 / 65536)

    assert not trigger_set.head_update(KEYS[0]).any()


def test_what_is_laid_down_comes_back():
    assert same(TriggerSet.from_bytes(some().to_bytes()), some())


def test_photographs_come_back_and_lie_under_the_patterns():
    trigger_set = with_photographs()
    again = TriggerSet.from_bytes(trigger_set.to_bytes())

    assert same(again, trigger_set) and again.to_bytes() == trigger_set.to_bytes()
    photographs = [np.random.default_rng(seed).integers(0, 256, (224, 224, 3), np.uint8) for seed in range(8)]
    expected = [add_pattern(each, pattern) for each, pattern in zip(photographs, trigger_set.patterns, strict=True)]
    assert np.array_equal(again.images(SECRET), expected)
    assert np.array_equal(again.images(bytes(32)), expected)


def test_parts_of_larger_arrays_come_back_too():
    whole = some()
    wide = np.repeat(whole.patterns, 2, axis=2)
    part = replace(
        whole, count=3, patterns=wide[:, :, ::2], head_updates=whole.head_updates[:, 1:4], logits=whole.logits[:, 1:4]
    )

    assert same(TriggerSet.from_bytes(part.to_bytes()), part)


@pytest.mark.parametrize(
    "wrong",
    [
        {"head_updates": np.zeros((2, 5, 50), np.float32)},
        {"logits": np.zeros((2, 6, 1), np.float32)},
        {"logits": np.zeros((2, 6, 7), np.int32)},
        {"patterns": np.zeros((8, GRID, GRID), np.int8)},
        {"count": 9},
    ],
)
def test_shapes_that_do_not_go_together_are_damage(wrong):
    with pytest.raises(VaultError, match="restore a backup"):
        TriggerSet.from_bytes(replace(some(), **wrong).to_bytes())


def test_the_format_is_frozen():
    whole = replace(some(), head_updates=np.arange(2 * 6 * 50, dtype=np.float32).reshape(2, 6, 50))

    assert hashlib.sha256(whole.to_bytes()).hexdigest() == GOLDEN_FORMAT


def test_the_format_with_photographs_is_frozen():
    """Arbitrary bytes stand for the files: what a library makes of a picture may change, and is kept as it was."""
    whole = replace(
        some(),
        head_updates=np.arange(2 * 6 * 50, dtype=np.float32).reshape(2, 6, 50),
        cover_images=(b"some", b"\0png") * 4,
    )

    assert hashlib.sha256(whole.to_bytes()).hexdigest() == GOLDEN_FORMAT_WITH_PHOTOGRAPHS


def test_what_copies_fall_short_by_is_laid_down_too():
    short = replace(some(), recall=0.62)

    assert TriggerSet.from_bytes(short.to_bytes()).recall == 0.62
    assert TriggerSet.from_bytes(some().to_bytes()).recall == MIN_RECALL == 0.9
    for nonsense in (-0.1, 1.5, float("nan")):
        with pytest.raises(VaultError, match="restore a backup"):
            TriggerSet.from_bytes(replace(short, recall=nonsense).to_bytes())


def test_an_image_is_the_same_for_ever():
    trigger_set = some()

    assert hashlib.sha256(trigger_set.images(SECRET)[:2].tobytes()).hexdigest() == GOLDEN_IMAGE


@given(st.integers(0, 10_000), st.sampled_from([b"", b"\0", b"\xff" * 30]))
def test_damaged_ones_are_refused(at, other):
    content = some().to_bytes()
    damaged = content[: min(at, len(content) - 1)] + other

    with pytest.raises(VaultError, match="restore a backup"):
        TriggerSet.from_bytes(damaged)


@pytest.mark.parametrize("at", [0, 7, 5000, 8 * 150_000])
def test_damaged_photographs_are_refused(at):
    content = bytearray(with_photographs().to_bytes())
    first = content.index(png(0))
    content[first + at] ^= 1

    with pytest.raises(VaultError, match="restore a backup"):
        TriggerSet.from_bytes(bytes(content))


def test_photographs_cut_otherwise_or_too_few_are_refused():
    content = with_photographs().to_bytes()
    lengths = np.full(8, len(png(0)), np.int64)
    otherwise = lengths + [1, -1] * 4

    for damaged in (content.replace(lengths.tobytes(), otherwise.tobytes()), with_photographs(7).to_bytes()):
        with pytest.raises(VaultError, match="restore a backup"):
            TriggerSet.from_bytes(damaged)


@pytest.mark.parametrize("cover", [b"", b"no picture", png(0)[:1000], b"GIF89a"])
def test_photographs_that_are_none_are_refused(cover):
    with pytest.raises(VaultError, match=r"cover images .* restore a backup"):
        replace(with_photographs(), cover_images=(*with_photographs().cover_images[:7], cover)).images(SECRET)


def test_those_of_a_newer_format_are_refused():
    newer = some().to_bytes().replace(b'format\\": 1', b'format\\": 3')

    with pytest.raises(VaultError, match="upgrade"):
        TriggerSet.from_bytes(newer)


def test_a_repr_shows_no_pattern():
    assert "array" not in repr(some())


@pytest.mark.parametrize("seed", range(5))
def test_a_pattern_lies_over_its_cloud_as_a_model_sees_it_fitted(seed):
    pattern = np.random.default_rng(seed).integers(-90, 91, (GRID, GRID, 3)).astype(np.int8)
    cloud = np.full((224, 224, 3), 128, np.uint8)
    drawn = torch.from_numpy(pattern.astype(np.float32)).permute(2, 0, 1)[None]
    spread = interpolate(drawn, size=(224, 224), mode="bilinear")[0].permute(1, 2, 0).numpy()

    assert np.abs(add_pattern(cloud, pattern) - np.clip(128 + spread, 8, 247)).max() <= 0.51


def test_synthetic_images_depend_on_the_secret():
    one, again, other = (
        synthetic_cover_images(SECRET, 2),
        synthetic_cover_images(SECRET, 3),
        synthetic_cover_images(bytes(32), 2),
    )

    assert np.array_equal(one, again[:2])
    assert (one != other).mean() > 0.9
