import json
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from examples._common.results import Figure, Results
from examples.benchmarks import verdicts as bench_verdicts
from examples.benchmarks.verdicts_bases import HALF, HEAD, NORMS, price_figure, sibling_base, ties_figure
from examples.benchmarks.verdicts_claims import adaptive_attacker_figure, claims_figure, figures_of, small_vault
from examples.benchmarks.verdicts_extraction import (
    WAYS,
    sample_carriers,
    save_raw,
    suspects_of,
    unreadable_figure,
    watching_figure,
)
from examples.benchmarks.verdicts_scale import QUICK, backbone, drifted
from hf_fingerprint import trace
from hf_fingerprint.checkpoints import open_checkpoint
from tests.helpers.quick_age import lock_quickly


pytestmark = pytest.mark.integration
FIGURE = Figure("what", "3 of 4", "<= 5 %", True, {"confirmed": 3})


@pytest.fixture(autouse=True)
def quick():
    """Vaults open in no time."""
    with patch("hf_fingerprint.vault.store.encrypt_identity", lock_quickly):
        yield


@pytest.mark.slow
def test_leakers_of_bases_that_tie_are_named_with_their_base(tmp_path):
    figure = ties_figure(tmp_path, QUICK)

    assert figure.holds, figure
    assert len(figure.counts) == 9
    assert {kind.partition(", ")[0] for kind in figure.counts} == {HEAD, NORMS, HALF}
    assert figure.measured == "18 of 18 named, 18 with their base; 0 others"


@pytest.mark.slow
def test_the_price_of_many_bases_is_timed_in_pairs_and_names_the_leaker_in_both_vaults(tmp_path):
    figure = price_figure(tmp_path, QUICK)

    assert figure.counts["accused"] == {"many": ["the leaker"], "one": ["the leaker"]}
    assert [len(times) for times in figure.counts["seconds"].values()] == [1, 1]
    assert figure.counts["bases_read"] + figure.counts["left"] == 3


def test_claims_of_top_scorers_are_counted(tmp_path):
    figure = claims_figure(tmp_path, QUICK)

    assert figure.holds, figure
    assert figure.counts["suspects"] == 6


@pytest.mark.slow
def test_an_attacker_frames_an_innocent_with_all_scores_and_nobody_without(tmp_path):
    figure = adaptive_attacker_figure(tmp_path, QUICK)

    assert figure.holds, figure
    assert figure.counts["queries"] == 150
    assert 70 < figure.counts["all_scores"]["queries_until_accused"] <= 150
    assert {"/lineage/cosine", "/threshold"} <= set(figure.counts["figures_seen"])
    assert not any("innocent" in kind for kind in figure.counts["figures_seen"])


def test_a_suspect_that_can_not_be_read_never_ends_in_nobody_if_that_may_be_a_miss(tmp_path):
    figure = unreadable_figure(tmp_path, QUICK)

    assert figure.holds, figure
    assert {who: len(found) for who, found in figure.counts["outcomes"].items()} == {"copy": 6, "stranger": 3}
    json.dumps(figure.counts)


def test_an_author_of_large_models_is_watched_for_little_and_a_leak_is_named(tmp_path):
    figure = watching_figure(tmp_path, QUICK)

    assert figure.holds, figure
    assert figure.counts["models"] == 5
    assert min(figure.counts["bytes_fetched"].values()) > 0
    assert figure.counts["outcomes"]["author"] == {"not comparable": 5}
    assert figure.counts["outcomes"]["leaks"] == {"accused": 1}


def test_thirty_suspects_are_of_which_something_can_not_be_read(tmp_path):
    arrays = {f"{i}": np.ones((2, 2), np.float32) for i in range(20)}
    made = list(suspects_of(arrays, arrays, list(arrays), len(WAYS), tmp_path, np.random.default_rng(0)))

    assert len(made) == 30
    assert len({(who, how) for who, how, _ in made}) == 30


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_what_is_kept_holds_no_more_than_its_share(share):
    arrays = {f"{i}": np.zeros(i + 1, np.float32) for i in range(30)}
    kept = sample_carriers(arrays, list(arrays), share, np.random.default_rng(0))
    held = sum(arrays[name].size for name in kept) / sum(array.size for array in arrays.values())

    assert share - 0.05 < held <= share


def test_safetensors_are_written_with_dtypes_of_any_name(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    path = save_raw({"a": ("F32", array)}, tmp_path / "a.safetensors")
    save_file({"a": array}, tmp_path / "b.safetensors")

    assert path.read_bytes()[8:] != b""
    with open_checkpoint(path) as ours, open_checkpoint(tmp_path / "b.safetensors") as theirs:
        assert ours.tensors.keys() == theirs.tensors.keys() == {"a"}
        assert ours.tensors["a"].shape == theirs.tensors["a"].shape
    assert np.array_equal(load_file(path)["a"], array)


def close_by(one, other):
    return torch.allclose(one.double(), other.double(), 0.06, 1e-6)


@pytest.mark.parametrize("kind", [HEAD, NORMS, HALF])
def test_a_sibling_base_has_the_same_backbone(kind):
    model = backbone(QUICK)
    ours, theirs = model.state_dict(), sibling_base(model, kind).state_dict()
    same = [name for name in ours if torch.equal(ours[name], theirs[name])]
    close = [n for n in ours if ours[n].shape == theirs[n].shape and close_by(ours[n], theirs[n])]

    assert len(same) < len(ours)
    assert len(close) >= len(ours) - 2
    if kind != HALF:
        assert all("bn" in name or "classifier" in name for name in ours.keys() - set(same))


def test_drift_has_the_requested_size():
    arrays = {"weight": np.random.default_rng(0).standard_normal((50, 50)), "bias": np.ones(5)}
    found = drifted(arrays, np.random.default_rng(1), 0.01, 0.03)
    share = (found["weight"] - arrays["weight"]).std() / arrays["weight"].std()

    assert 0.009 < share < 0.031
    assert np.array_equal(found["bias"], arrays["bias"])


def test_an_attacker_sees_every_figure_of_the_default_output_and_no_score_of_an_innocent(tmp_path):
    vault, public = small_vault(tmp_path, 10)
    suspects = []
    for i in range(2):
        suspects.append(tmp_path / f"{i}.safetensors")
        save_file(drifted(public, np.random.default_rng(i), 0.01, 0.02), suspects[-1])
    seen_figures, others = (dict(figures_of(trace(suspect, vault))) for suspect in suspects)

    assert seen_figures["/lineage/cosine"] != others["/lineage/cosine"]
    assert seen_figures["/recipients_tested"] == 10
    assert {kind: value for kind, value in seen_figures.items() if kind.startswith("/scores")} == {"/scores/count": 0}
    assert any(kind.startswith("text") for kind in seen_figures)


@pytest.mark.parametrize(("holds", "code"), [(True, 0), (False, 1)])
def test_the_exit_code_says_whether_every_bound_holds(tmp_path, monkeypatch, capsys, holds, code):
    seen = []

    def measure(work, scale):
        seen.append((work.is_dir(), scale))
        return replace(FIGURE, holds=holds)

    monkeypatch.setitem(bench_verdicts.PARTS, "claims", measure)

    results = tmp_path / "verdicts.json"
    chosen = ["--out", str(tmp_path), "--parts", "claims", "--quick", "--results", str(results)]
    assert bench_verdicts.main(chosen) == code
    assert seen == [(True, QUICK)]
    measured = "3 of 4" if holds else "3 of 4 (!)"
    assert f"| what | {measured} | <= 5 % |" in capsys.readouterr().out
    assert Results.read(results).tables[0].rows == (("what", measured, "<= 5 %"),)
    assert [path.name for path in tmp_path.iterdir()] == ["verdicts.json"]


def test_an_unknown_part_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        bench_verdicts.main(["--out", str(tmp_path), "--parts", "ties,tides"])

    assert "no part called tides" in capsys.readouterr().err
