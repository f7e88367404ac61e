import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_fingerprint.attacks import MERGE_RULES, MagnitudeBand, Merge, RandomDropping
from hf_fingerprint.errors import FingerprintError
from tests.helpers.attackers import CNN, make_attacker, trained_state


VALUES = {n: torch.tensor(v) for n, v in json.loads(Path(__file__).with_name("mergekit.json").read_text()).items()}
HEAD = {"head.weight": torch.eye(2)}
MERGES = [Merge(rule) for rule in MERGE_RULES] + [Merge("elected signs", MagnitudeBand(0.2)), Merge(scale=0.5)]


def merged(merge, ancestor, copies):
    """One tensor of several copies merged, without a model."""
    attacker = replace(make_attacker(CNN), ancestor={"a.weight": ancestor})
    return merge([{"a.weight": copy} | HEAD for copy in copies], attacker)["a.weight"]


@pytest.mark.parametrize(
    ("merge", "name"),
    [
        (Merge(scale=3.0), "task_arithmetic"),
        (Merge("elected signs", MagnitudeBand(0.25)), "ties 0.25"),
        (Merge("elected signs", MagnitudeBand(0.5)), "ties 0.5"),
        (Merge("model stock"), "model_stock"),
        (Merge("Karcher mean"), "karcher"),
    ],
)
def test_merges_are_mergekits(merge, name):
    expected = VALUES[name]
    if name == "task_arithmetic":  # normalized there
        merge = Merge()

    assert torch.allclose(merged(merge, VALUES["ancestor"], VALUES["copies"]), expected, atol=2e-6)


@given(st.integers(2, 5), st.integers(0, 99), st.floats(0.05, 0.9))
def test_model_stock_goes_as_far_as_the_cosine_of_the_copies_says(count, seed, cosine):
    generator = torch.Generator().manual_seed(seed)
    frame = torch.linalg.qr(torch.randn(64, count + 1, generator=generator))[0].T
    deltas = [cosine**0.5 * frame[0] + (1 - cosine) ** 0.5 * each for each in frame[1:]]
    ancestor = torch.randn(8, 8, generator=generator)

    found = merged(Merge("model stock"), ancestor, [ancestor + delta.reshape(8, 8) for delta in deltas])

    share = count * cosine / (1 + (count - 1) * cosine)
    assert torch.allclose(found - ancestor, share * sum(deltas).reshape(8, 8) / count, atol=1e-4)


@given(st.integers(1, 5), st.floats(0, 2), st.integers(0, 99))
def test_the_karcher_mean_is_where_the_arcs_to_the_copies_balance(count, spread, seed):
    generator = torch.Generator().manual_seed(seed)
    center = torch.randn(10, 10, generator=generator)
    copies = [center + spread * 0.3 * torch.randn(10, 10, generator=generator) for _ in range(count)]

    found = merged(Merge("Karcher mean"), torch.zeros(10, 10), copies).double().flatten()

    units = torch.stack([(copy / copy.norm()).double().flatten() for copy in copies])
    mean = found / found.norm()
    cosines = (units @ mean).clamp(-1, 1)
    arcs = cosines.arccos()[:, None] * torch.nn.functional.normalize(units - cosines[:, None] * mean, dim=1)
    assert float(arcs.mean(0).norm()) < 1e-3
    assert float(found.norm()) == pytest.approx(sum(float(copy.norm()) for copy in copies) / count, rel=1e-4)


def test_signs_are_elected_and_only_those_who_have_them_are_averaged():
    rows = [[1.0, -1.0, 0.0, 4.0], [2.0, -2.0, 3.0, -1.0], [-6.0, -3.0, 0.0, -1.0]]

    found = merged(Merge("elected signs"), torch.zeros(1, 4), [torch.tensor([row]) for row in rows])

    assert found.tolist() == [[-6.0, -2.0, 3.0, 4.0]]


@pytest.mark.parametrize("merge", MERGES, ids=repr)
def test_one_copy_alone_or_the_same_several_times_is_that_copy(merge):
    merge, ancestor = replace(merge, change=None, scale=1.0), VALUES["ancestor"]
    copy = VALUES["copies"][0]

    assert torch.allclose(merged(merge, ancestor, [copy]), copy, atol=1e-6)
    assert torch.allclose(merged(merge, ancestor, [copy] * 3), copy, atol=1e-5)


def test_scale_is_the_factor_on_the_mean_difference():
    ancestor, copies = VALUES["ancestor"], VALUES["copies"]

    found = merged(Merge(scale=0.3), ancestor, copies)

    assert torch.allclose(found, ancestor + 0.3 * (copies.mean(0) - ancestor), atol=1e-6)


def test_each_copy_is_dropped_at_random_on_its_own():
    ones = torch.ones(50, 50)

    found, again, other = (
        merged(Merge("mean", RandomDropping(0.5), seed=seed), 0 * ones, [ones] * 3) for seed in (0, 0, 1)
    )

    assert torch.equal(found, again)
    assert not torch.equal(found, other)
    assert len(found.unique()) == 4


@pytest.mark.parametrize("merge", MERGES, ids=repr)
def test_last_layer_biases_and_normalizations_are_averages_and_statistics_are_new(merge):
    torch.manual_seed(0)
    first, ancestor = trained_state(), trained_state()
    second = {n: 0.98 * t + 0.001 * torch.randn_like(t) if t.is_floating_point() else t for n, t in first.items()}
    ancestor = {n: 0.9 * t if t.is_floating_point() else t for n, t in ancestor.items()}

    after = merge([first, second], replace(make_attacker(CNN), ancestor=ancestor))

    for name in ("classifier.weight", "classifier.bias", "bn1.weight"):
        assert torch.allclose(after[name], (first[name] + second[name]) / 2)
    assert not torch.allclose(after["bn1.running_mean"], (first["bn1.running_mean"] + second["bn1.running_mean"]) / 2)
    assert not torch.equal(after["conv_head.weight"], first["conv_head.weight"])
    assert merge.contributions([first, second]) == (0.5, 0.5)


def test_nonsense_is_refused():
    with pytest.raises(FingerprintError, match="`rule` must be one of mean, elected signs"):
        Merge("median")
    with pytest.raises(FingerprintError, match="leave out change and scale"):
        Merge("Karcher mean", scale=0.5)
    with pytest.raises(FingerprintError, match="pass an Attacker"):
        Merge()([{"w": torch.ones(2, 2)}])


def test_the_strength_is_that_of_the_change_and_papers_are_named():
    assert Merge("elected signs", MagnitudeBand(0.2)).strength == 0.2
    assert Merge(scale=0.3).strength == 0.3
    assert "2306.01708" in Merge("elected signs").paper
    assert "2311.03099" in Merge(change=RandomDropping(0.9)).paper
