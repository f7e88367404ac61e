import dataclasses
import json
import math
import os
import secrets
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_fingerprint import FingerprintConfig, Issuer, TraceResult, issue, trace
from hf_fingerprint.attacks import (
    Cast,
    ChannelPermutation,
    Compose,
    MagnitudePruning,
    Quantization,
    StreamPermutation,
    collude,
)
from hf_fingerprint.codes import FairSigns, Tardos, decode
from hf_fingerprint.errors import CheckpointError, FingerprintError, PassphraseError, VaultError
from hf_fingerprint.outcomes import Outcome
from tests.helpers.small_models import (
    PASSPHRASE,
    PLAIN_SETTINGS,
    SETTINGS,
    new_vault,
    plain_arrays,
    save_plain,
    save_timm,
    unlocked_vault,
)


pytestmark = pytest.mark.integration


NAMES = ("alice", "bob", "carol", "dave", "erin", "frank")
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """Six copies of one base, and the vault, unlocked."""
    root = tmp_path_factory.mktemp("case")
    vault, model = unlocked_vault(root / "vault"), save_plain(root / "model")
    with Issuer(model, vault, PLAIN_SETTINGS) as issuer:
        copies = {copy.recipient: copy.path for copy in issuer.issue_all(NAMES, root / "copies")}
        base = issuer.base
    states = {name: load_file(path / "model.safetensors") for name, path in copies.items()}
    return SimpleNamespace(model=model, vault=vault, copies=copies, states=states, base=base)


def names(result: TraceResult) -> list[str]:
    return [score.recipient for score in result.accused]


def traced(case: SimpleNamespace, state: State, tmp_path: Path) -> TraceResult:
    path = tmp_path / "suspect.safetensors"
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, path)
    return trace(path, case.vault, all_scores=True)


def is_carrier(case: SimpleNamespace, name: str) -> bool:
    return name in {carrier.name for carrier in case.base.carriers}


def test_a_verbatim_copy_traces_to_its_recipient_alone(case):
    for name, path in case.copies.items():
        result = trace(path, case.vault, all_scores=True)

        assert (names(result), result.outcome, result.reason) == ([name], Outcome.ACCUSED, None)
        assert result.accused[0].score == pytest.approx(math.sqrt(case.base.length), rel=0.2)
        assert result.accused[0].log10_false_accusation < -200
        assert result.accused[0] == result.scores[0]
        assert all(score.score < result.threshold for score in result.scores[1:])
        assert all(score.log10_false_accusation > -3 for score in result.scores[1:])


def test_the_result_says_what_was_read(case):
    result = trace(case.copies["bob"], case.vault, all_scores=True)

    assert (result.tensors_matched, result.tensors_marked) == (17, 17)
    assert result.weights_read == case.base.carrier_weights == 131_328
    assert (result.weights_dropped, result.recipients_tested) == (0, 6)
    assert {score.recipient for score in result.scores} == set(NAMES)
    assert (result.base, result.base_source) == (case.base.base_id, str(case.model))
    assert (result.suspect, result.revision) == (str(case.copies["bob"]), None)
    assert result.alpha == case.base.alpha == 1e-6
    assert 5 < result.threshold < 9
    assert result.lineage.descends
    assert result.lineage.cosine == pytest.approx(1, abs=1e-4)
    assert result.lineage.drift == pytest.approx(0.003, rel=0.01)


def test_the_bound_and_the_threshold_agree(case, tmp_path):
    rng = torch.Generator().manual_seed(0)
    for size in (0.0, 0.05, 0.1, 0.2, 0.4):
        state = {
            n: t + size * t.std() * torch.randn(t.shape, generator=rng) if is_carrier(case, n) else t
            for n, t in case.states["dave"].items()
        }
        for score in traced(case, state, tmp_path).scores:
            assert score.accused == (score.log10_false_accusation <= -6)
            assert score.log10_false_accusation <= 0


def test_the_average_of_three_copies_traces_to_all_three(case, tmp_path):
    mixed = collude([case.states[name] for name in ("alice", "carol", "erin")], "average")

    result = traced(case, mixed, tmp_path)

    assert sorted(names(result)) == ["alice", "carol", "erin"]
    assert min(score.score for score in result.accused) > 15
    assert result.rounds >= 2


@pytest.mark.parametrize("strategy", ["minimum", "maximum", "median", "minority"])
@pytest.mark.parametrize("colluders", [["bob", "frank"], ["bob", "dave", "frank"]], ids=["two", "three"])
def test_all_of_two_or_three_colluders_are_accused_whatever_they_mix(case, tmp_path, colluders, strategy):
    mixed = collude([case.states[name] for name in colluders], strategy)

    assert sorted(names(traced(case, mixed, tmp_path))) == colluders


def test_layers_from_two_copies_trace_to_both(case, tmp_path):
    spliced = {n: case.states["bob" if i % 2 else "alice"][n] for i, n in enumerate(sorted(case.states["bob"]))}

    assert sorted(names(traced(case, spliced, tmp_path))) == ["alice", "bob"]


def amplified(state: State, base: State) -> State:
    return {n: base[n] + 50 * (t - base[n]) if t.is_floating_point() else t for n, t in state.items()}


def noisy(state: State, base: State) -> State:
    rng = torch.Generator().manual_seed(1)
    return {
        n: t + 0.02 * t.std() * torch.randn(t.shape, generator=rng) if t.is_floating_point() and t.numel() > 1 else t
        for n, t in state.items()
    }


TREATMENTS: dict[str, Callable[[State, State], State]] = {
    "cast to bfloat16": lambda s, b: Cast("bfloat16")(s),
    "cast to float16": lambda s, b: Cast("float16")(s),
    "cast to float64": lambda s, b: Cast("float64")(s),
    "cast to float8_e4m3fn": lambda s, b: Cast("float8_e4m3fn")({n: t for n, t in s.items() if t.numel()}),
    "8 bits": lambda s, b: Quantization(8)({n: t for n, t in s.items() if t.numel()}),
    "8 bits by channel": lambda s, b: Quantization(8, True)({n: t for n, t in s.items() if t.numel()}),
    "pruned to half": lambda s, b: MagnitudePruning(0.5)(s),
    "pruned to a tenth and trained": lambda s, b: noisy(MagnitudePruning(0.9)(s), b),
    "noise": noisy,
    "mark amplified 50 times": amplified,
    "scaled by 1.0001": lambda s, b: {n: t * 1.0001 if t.is_floating_point() else t for n, t in s.items()},
    "prefix module.": lambda s, b: {f"module.{n}": t for n, t in s.items()},
    "prefix timm_model.": lambda s, b: {f"timm_model.{n}": t for n, t in s.items()},
    "prefix module._orig_mod.timm_model.": lambda s, b: {f"module._orig_mod.timm_model.{n}": t for n, t in s.items()},
    "new names": lambda s, b: {f"tensor{i}": t for i, t in enumerate(s.values())},
    "new names and pruned": lambda s, b: {f"t{i}": t for i, t in enumerate(MagnitudePruning(0.5)(s).values())},
    "blocks in another order": lambda s, b: {
        n.replace("blocks.", "blocks.9") if "blocks" in n else n: t for n, t in s.items()
    },
    "blocks swapped": lambda s, b: {
        n.replace("blocks.0", "x").replace("blocks.3", "blocks.0").replace("x", "blocks.3"): t for n, t in s.items()
    },
    "new head": lambda s, b: s | {"head.weight": torch.randn(37, 48), "head.bias": torch.zeros(37)},
    "no head": lambda s, b: {n: t for n, t in s.items() if "head" not in n},
    "resized positions": lambda s, b: s | {"pos_embed": torch.randn(1, 65, 48)},
    "gray stem": lambda s, b: s | {"patch_embed.proj.weight": s["patch_embed.proj.weight"].sum(1, keepdim=True)},
    "decoys of the same names": lambda s, b: s | {f"module.{n}": torch.randn(t.shape) for n, t in s.items()},
    "half of the blocks": lambda s, b: {n: t for n, t in s.items() if "blocks.1" not in n and "blocks.2" not in n},
    "one block": lambda s, b: {n: t for n, t in s.items() if "blocks.1" in n},
    "new layers": lambda s, b: s | {f"adapter.{i}.weight": torch.randn(48, 48) for i in range(5)},
    "empty and integer tensors": lambda s, b: (
        s
        | {
            "a.weight": torch.zeros(0, 48),
            "b.weight": torch.arange(2304).reshape(48, 48),
            "blocks.0.mlp.fc1.weight": torch.arange(192 * 48).reshape(192, 48),
            "c": torch.tensor(3.0),
        }
    ),
}


@pytest.mark.parametrize("treatment", TREATMENTS)
def test_a_copy_traces_to_its_recipient_after(case, tmp_path, treatment):
    base = load_file(case.model / "model.safetensors")

    result = traced(case, TREATMENTS[treatment](case.states["carol"], base), tmp_path)

    assert names(result) == ["carol"]
    assert result.lineage.descends


def test_names_by_similarity_find_every_tensor(case, tmp_path):
    shuffled = list(case.states["dave"].values())
    torch.manual_seed(0)
    order = torch.randperm(len(shuffled)).tolist()

    result = traced(case, {f"p{i}": shuffled[i] for i in order}, tmp_path)

    assert names(result) == ["dave"]
    assert result.tensors_matched == 17
    assert result.accused[0].score > 40


def test_missing_layers_are_reported(case, tmp_path):
    kept = {n: t for n, t in case.states["erin"].items() if "blocks.1." not in n}

    result = traced(case, kept, tmp_path)

    assert result.tensors_matched == 13
    assert result.weights_read == 131_328 - 27_648
    assert names(result) == ["erin"]


def test_pruned_weights_are_counted_as_dropped(case, tmp_path):
    result = traced(case, MagnitudePruning(0.5)(case.states["erin"]), tmp_path)

    assert result.weights_dropped == pytest.approx(131_328 / 2, abs=17)
    assert result.weights_read + result.weights_dropped == 131_328


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("share", [0.01, 0.3])
def test_weights_that_are_not_finite_are_dropped_and_the_rest_traces(case, tmp_path, value, share):
    rng, spoiled, count = torch.Generator().manual_seed(2), {}, 0
    for name, tensor in case.states["frank"].items():
        spoiled[name] = tensor.clone()
        if is_carrier(case, name):
            mask = torch.rand(tensor.shape, generator=rng) < share
            spoiled[name][mask] = value
            count += int(mask.sum())

    result = traced(case, spoiled, tmp_path)

    assert names(result) == ["frank"]
    assert result.weights_dropped == count


@pytest.mark.parametrize("size", [3e38, 1e30, 1e-40])
def test_absurd_weights_in_some_tensors_are_no_obstacle(case, tmp_path, size):
    state = dict(case.states["frank"])
    for name in ("blocks.0.mlp.fc1.weight", "blocks.3.attn.qkv.weight", "conv.weight"):
        state[name] = state[name].sign() * size

    result = traced(case, state, tmp_path)

    assert names(result) == ["frank"]
    json.dumps(result.to_dict(), allow_nan=False)


def other_architecture() -> State:
    torch.manual_seed(4)
    return {f"layers.{i}.weight": torch.randn(100, 100 + i) for i in range(8)}


INNOCENT: dict[str, Callable[[State], State]] = {
    "the clean base": lambda b: b,
    "the base with noise": lambda b: noisy(b, b),
    "the base in bfloat16": lambda b: Cast("bfloat16")(b),
    "the base pruned": lambda b: MagnitudePruning(0.5)(b),
    "all zeros": lambda b: {n: torch.zeros_like(t) for n, t in b.items()},
    "all ones": lambda b: {n: torch.ones_like(t) for n, t in b.items()},
    "all NaN": lambda b: {n: torch.full_like(t, math.nan) if t.is_floating_point() else t for n, t in b.items()},
    "all infinite": lambda b: {n: torch.full_like(t, math.inf) if t.is_floating_point() else t for n, t in b.items()},
    "random weights": lambda b: {n: torch.randn(t.shape) for n, t in b.items()},
    "the base's negative": lambda b: {n: -t for n, t in b.items()},
    "another model of the same shape": lambda b: {n: torch.from_numpy(a) for n, a in plain_arrays(99).items()},
    "another architecture": lambda b: other_architecture(),
    "integers alone": lambda b: {n: torch.ones(t.shape, dtype=torch.int64) for n, t in b.items()},
    "one scalar": lambda b: {"x": torch.tensor(1.0)},
    "nothing but empty tensors": lambda b: {n: torch.zeros(0) for n in b},
}


@pytest.mark.parametrize("suspect", INNOCENT)
def test_nobody_is_accused_for(case, tmp_path, suspect):
    base = load_file(case.model / "model.safetensors")

    result = traced(case, INNOCENT[suspect](base), tmp_path)

    assert result.accused == ()
    assert not any(score.accused for score in result.scores)
    assert result.recipients_tested in (0, len(result.scores), 6)
    assert all(score.score < result.threshold for score in result.scores)
    assert result.lineage.descends == suspect.startswith(
        ("the clean base", "the base with", "the base in", "the base pruned", "the base's negative")
    )
    json.dumps(result.to_dict(), allow_nan=False)


def test_the_clean_base_reads_as_nothing_at_all(case):
    result = trace(case.model, case.vault, all_scores=True)

    assert [score.score for score in result.scores] == [0.0] * 6
    assert result.outcome is Outcome.NOBODY
    assert (result.lineage.cosine, result.lineage.drift) == (pytest.approx(1), 0)
    assert (result.threshold, result.rounds) == (math.inf, 0)
    assert result.to_dict()["threshold"] is None


def test_lineage_tells_a_drifted_descendant_from_a_stranger(case, tmp_path):
    rng = torch.Generator().manual_seed(3)
    drifted = {
        n: t + 0.3 * t.std() * torch.randn(t.shape, generator=rng) if is_carrier(case, n) else t
        for n, t in case.states["bob"].items()
    }

    lineage = traced(case, drifted, tmp_path).lineage

    assert lineage.descends
    assert lineage.drift == pytest.approx(0.3, rel=0.1)
    assert lineage.cosine == pytest.approx(1 / math.sqrt(1.09), abs=0.02)


def test_a_copy_of_another_vault_accuses_nobody_here(case, tmp_path):
    theirs = unlocked_vault(tmp_path / "vault")
    copy = issue(case.model, "alice", theirs, tmp_path / "copy", PLAIN_SETTINGS)

    assert names(trace(copy.path, theirs)) == ["alice"]
    result = trace(copy.path, case.vault)
    assert (result.accused, result.outcome) == ((), Outcome.NOBODY)
    assert result.lineage.descends
    assert theirs.bases()[0].content_hash == case.base.content_hash
    assert theirs.bases()[0].secret != case.base.secret


@pytest.mark.parametrize("form", ["sharded", "one .pth file", "state_dict in a .pth", "sharded .bin", ".bin folder"])
def test_a_copy_in_another_form_traces(case, tmp_path, form):
    state, parts = case.states["alice"], ({}, {})
    for i, (name, tensor) in enumerate(state.items()):
        parts[i % 2][name] = tensor
    suspect = tmp_path / "suspect"
    suspect.mkdir()
    if form == "one .pth file":
        torch.save(state, suspect / "x.pth")
        suspect = suspect / "x.pth"
    elif form == "state_dict in a .pth":
        torch.save({"epoch": 3, "state_dict": {f"module.{n}": t for n, t in state.items()}}, suspect / "x.pth")
    elif form == ".bin folder":
        torch.save(state, suspect / "pytorch_model.bin")
    else:
        kind, suffix = ("pytorch_model", "bin") if form == "sharded .bin" else ("model", "safetensors")
        shards = [f"{kind}-0000{i + 1}-of-00002.{suffix}" for i in range(2)]
        for shard, part in zip(shards, parts, strict=True):
            (torch.save if suffix == "bin" else save_file)(part, suspect / shard)
        weight_map = {name: shards[i % 2] for i, name in enumerate(state)}
        (suspect / f"{kind}.{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))

    result = trace(suspect, case.vault)

    assert names(result) == ["alice"]
    assert result.tensors_matched == 17


def test_a_timm_copy_loaded_with_another_head_and_size_traces(tmp_path):
    import timm

    vault, model = unlocked_vault(tmp_path / "vault"), save_timm(tmp_path / "model", "test_vit")
    with Issuer(model, vault, SETTINGS) as issuer:
        list(issuer.issue_all(["mallory", "nobody"], tmp_path / "copies"))

    attacker = timm.create_model(
        f"local-dir:{tmp_path / 'copies' / 'mallory'}", pretrained=True, num_classes=7, img_size=192
    )
    timm.models.save_for_hf(attacker, tmp_path / "stolen", safe_serialization=True)

    result = trace(tmp_path / "stolen", vault)
    assert names(result) == ["mallory"]
    assert result.tensors_matched == result.tensors_marked == 24


@pytest.fixture
def two_bases(case, tmp_path):
    """The case's vault and files, moved aside, with a second base of the same architecture."""
    vault, first = unlocked_vault(tmp_path / "vault"), save_plain(tmp_path / "first")
    second = save_plain(tmp_path / "second", plain_arrays(1))
    copies = {
        name: issue(model, name, vault, tmp_path / f"copy of {name}", PLAIN_SETTINGS).path
        for name, model in (("one", first), ("two", second))
    }
    return SimpleNamespace(vault=vault, first=first, second=second, copies=copies)


def test_the_right_base_of_one_architecture_is_found_by_itself(two_bases):
    for name, source in (("one", two_bases.first), ("two", two_bases.second)):
        result = trace(two_bases.copies[name], two_bases.vault)
        assert names(result) == [name]
        assert result.base_source == str(source)
        assert result.recipients_tested == 1


def test_the_right_base_of_a_disguised_copy_is_found_by_itself(tmp_path):
    vault = unlocked_vault(tmp_path / "vault")
    for seed in (0, 1, 2):
        model = save_timm(tmp_path / f"model {seed}", "test_vit", seed=seed, num_classes=10)
        issue(model, f"of {seed}", vault, tmp_path / f"copy {seed}", SETTINGS)

    for seed in (0, 1, 2):
        state = Compose(ChannelPermutation(), StreamPermutation())(
            load_file(tmp_path / f"copy {seed}" / "model.safetensors")
        )
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "suspect.safetensors")
        result = trace(tmp_path / "suspect.safetensors", vault)
        assert names(result) == [f"of {seed}"]
        assert result.tensors_aligned == 24


def test_the_right_base_is_found_though_all_names_are_new(two_bases, tmp_path):
    for name in ("one", "two"):
        state = load_file(two_bases.copies[name] / "model.safetensors")
        save_file({f"t{i}": tensor for i, tensor in enumerate(state.values())}, tmp_path / "renamed.safetensors")
        assert names(trace(tmp_path / "renamed.safetensors", two_bases.vault)) == [name]


def test_the_right_base_of_several_architectures_is_found_by_itself(case, tmp_path):
    vault = unlocked_vault(tmp_path / "vault")
    small = save_plain(tmp_path / "small", plain_arrays(2, blocks=3))
    wide = {f"w{i}.weight": np.random.default_rng(i).standard_normal((200, 100)).astype("f4") for i in range(4)}
    for name, model in (("small", small), ("wide", save_plain(tmp_path / "wide", wide)), ("plain", case.model)):
        issue(model, name, vault, tmp_path / f"copy of {name}", PLAIN_SETTINGS)

    for name in ("small", "wide", "plain"):
        assert names(trace(tmp_path / f"copy of {name}", vault)) == [name]


@pytest.mark.parametrize("order", ["float32 first", "float16 first"])
def test_copies_of_a_base_and_of_its_half_precision_version_both_trace(tmp_path, order):
    vault, single = unlocked_vault(tmp_path / "vault"), save_plain(tmp_path / "float32")
    half = tmp_path / "float16" / "model.safetensors"
    half.parent.mkdir()
    save_file(Cast("float16")(load_file(single / "model.safetensors")), half)
    for name in ("float32", "float16") if order == "float32 first" else ("float16", "float32"):
        issue(tmp_path / name, f"of {name}", vault, tmp_path / f"copy of {name}", PLAIN_SETTINGS)

    for name in ("float32", "float16"):
        assert names(trace(tmp_path / f"copy of {name}", vault)) == [f"of {name}"]


def test_a_moved_base_is_named_and_may_be_given(two_bases, tmp_path):
    shutil.rmtree(two_bases.second)
    (base, _) = two_bases.vault.bases()
    two_bases.first.rename(tmp_path / "elsewhere")

    with pytest.raises(VaultError) as caught:
        trace(two_bases.copies["one"], two_bases.vault)
    assert base.base_id in str(caught.value)
    assert str(two_bases.first) in str(caught.value)
    assert "--base" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1

    assert names(trace(two_bases.copies["one"], two_bases.vault, base=tmp_path / "elsewhere")) == ["one"]


def test_a_moved_base_is_named_though_another_of_its_architecture_is_there(two_bases, tmp_path):
    moved = two_bases.vault.bases()[1]
    two_bases.second.rename(tmp_path / "elsewhere")

    with pytest.raises(VaultError, match=moved.base_id):
        trace(two_bases.copies["two"], two_bases.vault)

    assert names(trace(two_bases.copies["one"], two_bases.vault)) == ["one"]


def test_a_base_may_be_chosen_by_its_id(two_bases):
    first, second = two_bases.vault.bases()

    assert names(trace(two_bases.copies["two"], two_bases.vault, base=second.base_id)) == ["two"]
    result = trace(two_bases.copies["two"], two_bases.vault, base=first.base_id)
    assert result.accused == ()
    assert not result.lineage.descends


def test_a_base_that_is_not_on_record_is_refused(case, tmp_path):
    stranger = save_plain(tmp_path / "stranger", plain_arrays(5))

    with pytest.raises(VaultError, match="is not a base of"):
        trace(case.copies["bob"], case.vault, base=stranger)
    with pytest.raises(VaultError, match="is not a base of"):
        trace(case.copies["bob"], case.vault, base=case.copies["alice"])
    with pytest.raises(CheckpointError):
        trace(case.copies["bob"], case.vault, base=tmp_path / "nowhere")


def test_a_base_whose_file_changed_is_refused(tmp_path):
    vault, model = unlocked_vault(tmp_path / "vault"), save_plain(tmp_path / "model")
    copy = issue(model, "alice", vault, tmp_path / "copy", PLAIN_SETTINGS)
    with (model / "model.safetensors").open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last[0] ^ 1]))

    with pytest.raises(VaultError, match=f"no longer base {vault.bases()[0].base_id}"):
        trace(copy.path, vault)


def test_a_locked_vault_is_refused_in_a_sentence_and_a_passphrase_opens_it(case, tmp_path):
    shutil.copytree(case.vault.folder, tmp_path / "vault")

    with pytest.raises(PassphraseError, match=r"vault is locked") as caught:
        trace(case.copies["bob"], tmp_path / "vault")
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(PassphraseError, match="does not open with this passphrase"):
        trace(case.copies["bob"], tmp_path / "vault", passphrase="wrong")
    assert names(trace(case.copies["bob"], tmp_path / "vault", passphrase=PASSPHRASE)) == ["bob"]


def test_a_vault_without_bases_is_refused_in_a_sentence(case, tmp_path):
    new_vault(tmp_path / "vault")

    with pytest.raises(VaultError, match="holds no base"):
        trace(case.copies["bob"], tmp_path / "vault", passphrase=PASSPHRASE)


def test_a_base_without_copies_accuses_nobody(case, tmp_path):
    vault = unlocked_vault(tmp_path / "vault")
    Issuer(case.model, vault, PLAIN_SETTINGS).__exit__()

    result = trace(case.copies["bob"], vault)

    assert (result.accused, result.scores, result.recipients_tested) == ((), (), 0)
    assert result.outcome is Outcome.NOT_READABLE
    assert "has no copy of base" in result.reason
    json.dumps(result.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("UPDATE copies SET recipient = 'mallory' WHERE recipient = 'bob'", "tampered with"),
        ("UPDATE copies SET commitment = content_hash WHERE recipient = 'bob'", "commitment"),
        ("UPDATE copies SET content_hash = commitment WHERE recipient = 'bob'", "commitment"),
        ("UPDATE copies SET sealed = (SELECT sealed FROM copies WHERE recipient = 'alice')", "tampered with"),
        ("UPDATE copies SET sealed = x'00' WHERE recipient = 'bob'", "tampered with"),
        ("UPDATE bases SET document = replace(document, '1e-06', '1e-01')", "tampered with"),
        ("UPDATE bases SET secret = zeroblob(32)", "tampered with"),
        ("UPDATE bases SET amplitudes = zeroblob(length(amplitudes))", "tampered with"),
    ],
)
def test_a_tampered_record_is_named_and_clears_nobody(case, tmp_path, change, said):
    shutil.copytree(case.vault.folder, tmp_path / "vault")
    connection = sqlite3.connect(tmp_path / "vault" / "vault.db")
    assert connection.execute(change).rowcount >= 1
    connection.commit()
    connection.close()

    if "UPDATE bases" in change:  # the only one
        with pytest.raises(VaultError, match=said) as caught:
            trace(case.copies["bob"], tmp_path / "vault", passphrase=PASSPHRASE)
        assert len(str(caught.value).splitlines()) == 1
        return

    found = trace(case.copies["bob"], tmp_path / "vault", passphrase=PASSPHRASE)
    assert found.outcome is Outcome.NOT_READABLE
    assert said in found.reason
    assert found.rows_not_used
    assert not found.accused


@pytest.mark.parametrize("suspect", ["nowhere", "a text file", "a folder without weights"])
def test_a_suspect_that_is_no_model_is_an_error_and_not_a_verdict(case, tmp_path, suspect):
    path = tmp_path / "suspect"
    if suspect == "a text file":
        path.write_text("hello")
    elif suspect == "a folder without weights":
        path.mkdir()

    with pytest.raises(CheckpointError) as caught:
        trace(path, case.vault)

    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("suspect", ["half a file", "a pickle of code", "another library's file"])
def test_a_file_that_cannot_be_read_clears_nobody(case, tmp_path, suspect):
    path = tmp_path / {"half a file": "half.safetensors", "a pickle of code": "code.pth"}.get(suspect, "model.onnx")
    path.write_bytes((case.copies["bob"] / "model.safetensors").read_bytes()[:-1000])
    if suspect == "a pickle of code":
        torch.save({"x": os.system}, path)

    result = trace(path, case.vault)

    assert (result.outcome, result.accused, result.base) == (Outcome.NOT_READABLE, (), None)
    assert path.name in result.reason
    assert len(result.reason.splitlines()) == 1
    json.dumps(result.to_dict(), allow_nan=False)


def test_results_are_frozen_and_plain_json(case):
    result = trace(case.copies["dave"], case.vault)

    for value, field in ((result, "accused"), (result.scores[0], "score"), (result.lineage, "descends")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field, None)
    shown = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert shown["accused"][0]["recipient"] == "dave"
    assert shown["accused"][0].keys() == {
        "recipient",
        "copy_id",
        "score",
        "log10_false_accusation",
        "accused",
        "base",
        "state",
        "created",
    }
    assert shown["scores"] == shown["accused"]
    assert shown["outcome"] == "accused"
    assert shown["lineage"].keys() == {"descends", "cosine", "drift"}
    assert shown["threshold"] == result.threshold
    assert shown.keys() == {field.name for field in dataclasses.fields(result)}


def test_progress_counts_every_weight_and_every_copy(case):
    steps = []

    trace(case.copies["dave"], case.vault, progress=lambda *step: steps.append(step))

    assert max(done for step, done, _ in steps if step == "extracting") == case.base.carrier_weights
    assert {total for step, _, total in steps if step == "extracting"} == {case.base.carrier_weights}
    assert all(0 < done <= total for _, done, total in steps)


def test_a_trace_leaves_suspect_base_and_copies_as_they_are(case, tmp_path):
    shutil.copytree(case.copies["dave"], tmp_path / "suspect")
    watched = [tmp_path / "suspect", case.model, case.copies["dave"]]
    state = lambda: [(p, p.stat().st_mtime_ns) for folder in watched for p in sorted(folder.rglob("*"))]  # noqa: E731
    before = state()

    trace(tmp_path / "suspect", case.vault)

    assert state() == before


def test_a_code_of_fair_signs_traces_too(case, tmp_path):
    vault = unlocked_vault(tmp_path / "vault")
    with Issuer(case.model, vault, FingerprintConfig(coalition=2, expected_recipients=4, amplitude=0.003)) as issuer:
        copies = {copy.recipient: copy.path for copy in issuer.issue_all(["one", "two", "three"], tmp_path / "copies")}
    assert issuer.base.family == "fair_signs"
    states = [load_file(copies[name] / "model.safetensors") for name in ("one", "two")]

    save_file(collude(states, "average"), tmp_path / "mixed.safetensors")

    assert names(trace(copies["three"], vault)) == ["three"]
    assert sorted(names(trace(tmp_path / "mixed.safetensors", vault))) == ["one", "two"]


def test_two_copies_of_one_recipient_are_distinguished(case, tmp_path):
    vault = unlocked_vault(tmp_path / "vault")
    first = issue(case.model, "alice", vault, tmp_path / "first", PLAIN_SETTINGS)
    second = issue(case.model, "alice", vault, tmp_path / "second", PLAIN_SETTINGS)

    result = trace(second.path, vault, all_scores=True)

    assert [score.copy_id for score in result.accused] == [second.copy_id]
    assert {score.copy_id for score in result.scores} == {first.copy_id, second.copy_id}


def adversarial_signals(length: int, codebook: Tardos | FairSigns) -> dict[str, np.ndarray]:
    """Suspects that colluders may build if they know the code's mean but no innocent's bits."""
    rng = np.random.default_rng(5)
    colluders = 2.0 * np.unpackbits(codebook.packed([secrets.token_bytes(32) for _ in range(40)]), axis=1) - 1
    spike = np.zeros(length)
    spike[17] = 1e6
    return {
        "ones": np.ones(length),
        "one position": spike,
        "noise": rng.standard_normal(length),
        "heavy tails": rng.standard_cauchy(length),
        "the code's mean": codebook.mean,
        "40 colluders' average": colluders.mean(0),
        "40 colluders' maximum": colluders.max(0),
    }


@pytest.mark.parametrize("family", ["tardos", "fair_signs"])
def test_no_innocent_of_a_hundred_thousand_is_accused_by_any_signal(family):
    length, recipients = 1024, 15_000
    codebook = Tardos(length, 3, bytes(32)) if family == "tardos" else FairSigns(length)
    keys = [secrets.token_bytes(32) for _ in range(recipients)]
    highest = 0.0
    for name, signal in adversarial_signals(length, codebook).items():
        decoded = decode(codebook, keys, signal, np.ones(length), 1e-6)
        assert decoded.accused == (), name
        assert (decoded.log_bounds > math.log(1e-6)).all()
        highest = max(highest, float(decoded.scores.max()))
        colluding = codebook.codeword(keys[77]) + 0.1 * signal / max(np.abs(signal).max(), 1)
        assert decode(codebook, keys[:200], colluding, np.ones(length), 1e-6).accused == (77,)
    assert highest > 3  # the scores of so many innocents do spread


def test_every_error_is_of_the_packages_own_family(case, tmp_path):
    for suspect, vault in ((tmp_path / "no", case.vault), (case.model, tmp_path / "no")):
        with pytest.raises(FingerprintError):
            trace(suspect, vault)


@pytest.mark.parametrize("code", ["nuida", "fair_signs"])
def test_copies_in_every_code_trace_alone_and_averaged(tmp_path, code):
    vault, model = unlocked_vault(tmp_path / "vault"), save_plain(tmp_path / "model")
    with Issuer(model, vault, replace(PLAIN_SETTINGS, code=code)) as issuer:
        copies = {c.recipient: c.path for c in issuer.issue_all(NAMES[:4], tmp_path / "copies")}
    states = [load_file(copies[name] / "model.safetensors") for name in NAMES[:2]]
    save_file(collude(states), tmp_path / "mixed.safetensors")

    assert names(trace(copies[NAMES[0]], vault)) == [NAMES[0]]
    assert sorted(names(trace(tmp_path / "mixed.safetensors", vault))) == sorted(NAMES[:2])
