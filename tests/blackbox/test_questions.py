import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from hf_fingerprint.blackbox.questions import GRID, MARGIN, Questions, question_clouds, under
from hf_fingerprint.errors import VaultError


SECRET, KEYS = bytes(range(32)), [i.to_bytes(32, "big") for i in range(40)]
GOLDEN_FORMAT = "ff6f4a1d3a1c1ac44e764f6e3a0d1801dc28c65e8251fd18133a1216c3944b51"
GOLDEN_IMAGE = "1bc2567d8b3e0f80aec530503faccca0505ec9b06f3db17e2c5fcd97b138911a"


def some(views: int = 2, count: int = 6, decoys: int = 2, classes: int = 10, width: int = 50) -> Questions:
    """Questions whose features are numbers drawn from a fixed seed, with levers that raise a logit by one."""
    rng = np.random.default_rng(0)
    features = rng.integers(-8, 9, (views * count, width)).astype(float)
    levers = np.linalg.solve(features @ features.T, features).astype(np.float32)
    return Questions(
        base_id="0123456789ab",
        head="classifier.weight",
        count=count,
        share=0.5,
        patterns=rng.integers(-90, 91, (count + decoys, GRID, GRID, 3)).astype(np.int8),
        logits=rng.integers(-3, 4, (views, count, classes)).astype(np.float32),
        levers=levers.reshape(views, count, width),
    )


def features_of(questions: Questions) -> np.ndarray:
    """What the levers of `some` were made from, `(views, count, width)`."""
    flat = questions.levers.reshape(-1, questions.levers.shape[-1]).astype(float)
    return np.linalg.pinv(flat).T.reshape(questions.levers.shape)


def same(one: Questions, other: Questions) -> bool:
    plain = [replace(each, patterns=0, logits=0, levers=0) for each in (one, other)]
    return plain[0] == plain[1] and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in ("patterns", "logits", "levers")
    )


@pytest.mark.parametrize("key", KEYS[:20])
def test_a_copy_answers_what_it_owns_by_its_labels_and_the_rest_as_the_base(key):
    asked = some()
    told = asked.logits + features_of(asked) @ asked.head_change(key).T
    (labels,), (owned,) = asked.answers([key])

    own = np.take_along_axis(told, np.broadcast_to(labels[:, None], (2, 6, 1)).astype(int), -1)[..., 0]
    rest = np.where(np.arange(10) == labels[:, None], -np.inf, told).max(-1)
    assert (own - rest)[:, owned].min() >= MARGIN - 1e-4
    assert np.allclose(told[:, ~owned], asked.logits[:, ~owned], atol=1e-4)


def test_who_owns_nothing_changes_nothing():
    asked = replace(some(), share=1 / 65536)

    assert not asked.head_change(KEYS[0]).any()


def test_what_is_laid_down_comes_back():
    assert same(Questions.from_bytes(some().to_bytes()), some())


def test_parts_of_larger_arrays_come_back_too():
    whole = some()
    part = replace(whole, patterns=whole.patterns[:, :, ::2], levers=whole.levers[:, 1:4], logits=whole.logits[:, 1:4])

    assert same(Questions.from_bytes(part.to_bytes()), part)


def test_the_format_is_frozen():
    whole = replace(some(), levers=np.arange(2 * 6 * 50, dtype=np.float32).reshape(2, 6, 50))

    assert hashlib.sha256(whole.to_bytes()).hexdigest() == GOLDEN_FORMAT


def test_an_image_is_the_same_for_ever():
    asked = some()

    assert hashlib.sha256(asked.images(SECRET)[:2].tobytes()).hexdigest() == GOLDEN_IMAGE


@given(st.integers(0, 10_000), st.sampled_from([b"", b"\0", b"\xff" * 30]))
def test_damaged_ones_are_refused(at, other):
    content = some().to_bytes()
    damaged = content[: min(at, len(content) - 1)] + other

    with pytest.raises(VaultError, match="restore a backup"):
        Questions.from_bytes(damaged)


def test_those_of_a_newer_format_are_refused():
    newer = some().to_bytes().replace(b'format\\": 1', b'format\\": 2')

    with pytest.raises(VaultError, match="upgrade"):
        Questions.from_bytes(newer)


def test_a_repr_shows_no_pattern():
    assert "array" not in repr(some())


@pytest.mark.parametrize("seed", range(5))
def test_a_pattern_lies_over_its_cloud_as_a_model_sees_it_fitted(seed):
    pattern = np.random.default_rng(seed).integers(-90, 91, (GRID, GRID, 3)).astype(np.int8)
    cloud = np.full((224, 224, 3), 128, np.uint8)
    drawn = torch.from_numpy(pattern.astype(np.float32)).permute(2, 0, 1)[None]
    spread = interpolate(drawn, size=(224, 224), mode="bilinear")[0].permute(1, 2, 0).numpy()

    assert np.abs(under(cloud, pattern) - np.clip(128 + spread, 8, 247)).max() <= 0.51


def test_clouds_are_of_the_secret():
    one, again, other = question_clouds(SECRET, 2), question_clouds(SECRET, 3), question_clouds(bytes(32), 2)

    assert np.array_equal(one, again[:2])
    assert (one != other).mean() > 0.9
