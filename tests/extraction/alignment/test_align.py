from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed

from hf_fingerprint import Issuer, trace
from hf_fingerprint.attacks import (
    BatchNormFolding,
    ChannelPermutation,
    Compose,
    DummyUnits,
    HeadBasisChange,
    HeadPermutation,
    MagnitudePruning,
    Quantization,
    Renaming,
    RowRescaling,
    StreamPermutation,
    StreamRotation,
)
from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.extraction import extract, whiten
from hf_fingerprint.extraction.alignment import align, layer_pairs, rotation_test, suspect_model
from hf_fingerprint.extraction.match import match_tensors
from tests.helpers.small_models import PLAIN_SETTINGS, SETTINGS, plain_arrays, save_plain, save_timm, unlocked_vault


pytestmark = pytest.mark.integration
HEADS = 3
NARROW = (8, 16, 32, 64)


def everything(state):
    return StreamPermutation(1)(HeadPermutation(HEADS, 2)(ChannelPermutation(seed=3)(state)))


def ready(root, architecture):
    model, vault = save_timm(root / "model", architecture, num_classes=10), unlocked_vault(root / "vault")
    with Issuer(model, vault, SETTINGS) as issuer:
        copies = list(issuer.issue_all(["alice", "bob", "carol"], root / "copies"))
        base = issuer.base
    return SimpleNamespace(
        root=root, model=model, vault=vault, base=base, state=load_file(copies[0].path / "model.safetensors")
    )


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """A vision transformer, three copies, the first one's weights."""
    found = ready(tmp_path_factory.mktemp("vit"), "test_vit3")
    assert timm.create_model("test_vit3").blocks[0].attn.num_heads == HEADS
    return found


@pytest.fixture(scope="module")
def plain_vit(tmp_path_factory):
    """The same for a transformer that ends in a plain classifier."""
    return ready(tmp_path_factory.mktemp("plain"), "test_vit")


@pytest.fixture(scope="module")
def scaled_vit(tmp_path_factory):
    """The same for a transformer with layer scales."""
    return ready(tmp_path_factory.mktemp("scaled"), "test_vit2")


@pytest.fixture(scope="module")
def narrow_resnet(tmp_path_factory):
    """A narrow residual network that can't be built, since its configuration is missing."""
    root = tmp_path_factory.mktemp("narrow")
    model = save_timm(root / "model", "resnet26", num_classes=10, channels=NARROW)
    (model / "config.json").unlink()
    vault = unlocked_vault(root / "vault")
    with Issuer(model, vault, PLAIN_SETTINGS) as issuer:
        copies = list(issuer.issue_all(["alice", "bob"], root / "copies"))
    return SimpleNamespace(model=model, vault=vault, state=load_file(copies[0].path / "model.safetensors"))


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """The same for a residual network."""
    return ready(tmp_path_factory.mktemp("resnet"), "test_resnet")


def scores(case, state, tmp_path):
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "suspect.safetensors")
    result = trace(tmp_path / "suspect.safetensors", case.vault, all_scores=True)
    assert {score.recipient for score in result.accused} <= {"alice"}
    return {score.recipient: score.score for score in result.scores}, result


VIT = {
    "heads": HeadPermutation(HEADS),
    "hidden units": ChannelPermutation(),
    "residual stream": StreamPermutation(),
    "all of them": everything,
    "all of them, int8": lambda state: Quantization(8)(everything(state)),
    "all of them, half pruned": lambda state: MagnitudePruning(0.5)(everything(state)),
}


@pytest.mark.parametrize("case", VIT)
def test_a_transformers_permuted_channels_are_aligned(vit, tmp_path, case):
    before, _ = scores(vit, vit.state, tmp_path)

    after, result = scores(vit, VIT[case](vit.state), tmp_path)

    assert after["alice"] >= 0.9 * before["alice"]
    assert [score.recipient for score in result.accused] == ["alice"]
    assert result.tensors_aligned > 0
    assert result.lineage.descends


ROTATED = {
    "heads": HeadBasisChange(1.0, 2),
    "heads, a little": HeadBasisChange(0.1, 2),
    "stream": StreamRotation(),
    "stream, a little": StreamRotation(0.1),
    "all that can be": Compose(
        ChannelPermutation(),
        HeadPermutation(2),
        HeadBasisChange(1.0, 2),
        StreamPermutation(),
        StreamRotation(),
        Quantization(8, True),
    ),
    "other names": Renaming("module."),
    "other names, and all that can be": Compose(
        ChannelPermutation(), HeadBasisChange(1.0, 2), StreamPermutation(), StreamRotation(), Renaming()
    ),
    "units added and the stream moved": Compose(DummyUnits(0.25, "split"), StreamPermutation()),
}


@pytest.mark.parametrize("case", ROTATED)
@pytest.mark.parametrize("scaled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_transformers_heads_and_stream_in_another_basis_are_aligned(plain_vit, scaled_vit, tmp_path, scaled, case):
    ready = scaled_vit if scaled else plain_vit
    before, _ = scores(ready, ready.state, tmp_path)

    after, result = scores(ready, ROTATED[case](ready.state), tmp_path)

    assert after["alice"] >= 0.9 * before["alice"]
    assert [score.recipient for score in result.accused] == ["alice"]
    assert result.tensors_aligned > 0 or case == "other names"


@pytest.mark.parametrize(
    "attack",
    [
        ChannelPermutation(),
        RowRescaling(),
        RowRescaling(flip=True),
        RowRescaling(strength=3.0, flip=True),
        StreamPermutation(),
        Compose(StreamPermutation(), ChannelPermutation(), RowRescaling()),
        DummyUnits(),
        DummyUnits(0.5, "cancelling"),
        DummyUnits(0.5, "split"),
        Compose(DummyUnits(0.25, "split"), StreamPermutation()),
        Compose(StreamPermutation(), ChannelPermutation(), RowRescaling(flip=True), BatchNormFolding()),
    ],
    ids=str,
)
def test_a_networks_permuted_rescaled_or_flipped_rows_are_aligned(resnet, tmp_path, attack):
    before, _ = scores(resnet, resnet.state, tmp_path)

    after, result = scores(resnet, attack(resnet.state), tmp_path)

    assert after["alice"] >= 0.9 * before["alice"]
    assert result.tensors_aligned > 0


@pytest.mark.parametrize(
    "attack",
    [
        Compose(ChannelPermutation(), StreamPermutation()),
        Compose(StreamPermutation(seed=1), ChannelPermutation(seed=2)),
        Compose(ChannelPermutation(), StreamPermutation(), RowRescaling(flip=True)),
        Compose(ChannelPermutation(), StreamPermutation(), Quantization(8)),
    ],
    ids=str,
)
def test_a_narrow_network_is_aligned_from_its_first_layer_on_if_no_model_can_be_built(narrow_resnet, tmp_path, attack):
    before, _ = scores(narrow_resnet, narrow_resnet.state, tmp_path)

    after, result = scores(narrow_resnet, attack(narrow_resnet.state), tmp_path)

    assert after["alice"] >= (0.75 if "Quantization" in str(attack) else 0.95) * before["alice"]
    assert result.tensors_aligned >= 0.85 * result.tensors_marked


@pytest.mark.parametrize("seed", [5, 6])
def test_no_small_layer_of_a_stranger_is_aligned_by_chance(narrow_resnet, tmp_path, seed):
    path = save_timm(tmp_path / "other", "resnet26", seed=seed, num_classes=10, channels=NARROW)

    _, result = scores(narrow_resnet, load_file(path / "model.safetensors"), tmp_path)

    assert result.tensors_aligned == 0
    assert not result.accused and not result.lineage.descends


def test_a_few_permuted_rows_are_aligned_even_if_a_sample_of_rows_misses_them(resnet, tmp_path, monkeypatch):
    aligned_tensors = ChannelPermutation(0.15, seed=1)(resnet.state)
    before, _ = scores(resnet, resnet.state, tmp_path)

    after, result = scores(resnet, aligned_tensors, tmp_path)
    monkeypatch.setattr(align, "_all_rows_similar", lambda ours, theirs: True)
    by_sample, fewer = scores(resnet, aligned_tensors, tmp_path)

    assert result.tensors_aligned > fewer.tensors_aligned
    assert after["alice"] >= max(0.98 * before["alice"], by_sample["alice"])


def new_head(state):
    torch.manual_seed(1)
    name = "head" if "head.weight" in state else "fc"
    return state | {f"{name}.weight": torch.randn(7, state[f"{name}.weight"].shape[1]), f"{name}.bias": torch.randn(7)}


def one_channel(state):
    stem = "patch_embed.proj.weight" if "patch_embed.proj.weight" in state else "conv1.0.weight"
    return state | {stem: state[stem].sum(1, keepdim=True)}


def larger_images(state):
    grid = int((state["pos_embed"].shape[1] - 1) ** 0.5)
    return state | {"pos_embed": resample_abs_pos_embed(state["pos_embed"], [2 * grid, 2 * grid], [grid, grid])}


@pytest.mark.parametrize("adapted", [new_head, one_channel, larger_images])
@pytest.mark.parametrize(
    "attack", [dict, everything, ROTATED["all that can be"]], ids=["unchanged", "moved", "turned"]
)
def test_a_transformer_adapted_to_other_data_is_aligned(plain_vit, tmp_path, adapted, attack):
    before, _ = scores(plain_vit, plain_vit.state, tmp_path)
    attack = Compose(ChannelPermutation(), HeadPermutation(2), StreamPermutation()) if attack is everything else attack

    after, result = scores(plain_vit, adapted(attack(plain_vit.state)), tmp_path)

    assert after["alice"] >= 0.9 * before["alice"]
    assert (result.tensors_aligned > 0) == (attack is not dict)


@pytest.mark.parametrize("adapted", [new_head, one_channel])
def test_a_network_adapted_to_other_data_is_aligned(resnet, tmp_path, adapted):
    before, _ = scores(resnet, resnet.state, tmp_path)

    after, _ = scores(resnet, adapted(Compose(StreamPermutation(), ChannelPermutation())(resnet.state)), tmp_path)

    assert after["alice"] >= 0.9 * before["alice"]


def test_aligned_weights_are_not_changed_and_no_model_is_built(vit, tmp_path, monkeypatch):
    monkeypatch.setattr(suspect_model, "build_model", lambda source: pytest.fail("built"))

    for attack in (dict, Quantization(5), MagnitudePruning(0.7)):  # in 4 bits it depends on the keys
        _, result = scores(vit, attack(vit.state), tmp_path)
        assert result.tensors_aligned == 0
        assert [score.recipient for score in result.accused] == ["alice"]


def test_without_alignment_the_mark_is_lost(vit, tmp_path):
    save_file({n: t.contiguous() for n, t in everything(vit.state).items()}, tmp_path / "suspect.safetensors")

    with open_checkpoint(vit.model) as original, open_checkpoint(tmp_path / "suspect.safetensors") as suspect:
        unaligned = extract(vit.base, original, suspect, aligned=False)
        aligned = extract(vit.base, original, suspect)

    assert not unaligned.lineage.descends
    assert aligned.lineage.descends


def test_a_stranger_is_not_made_a_descendant(vit, tmp_path):
    other = load_file(save_timm(tmp_path / "other", "test_vit3", seed=5, num_classes=10) / "model.safetensors")

    found, result = scores(vit, other, tmp_path)

    assert not result.accused
    assert not result.lineage.descends
    assert max(found.values()) < 5


@pytest.mark.parametrize("attack", [everything, ROTATED["all that can be"]])
def test_the_base_itself_disguised_accuses_nobody(vit, plain_vit, tmp_path, attack):
    ready = vit if attack is everything else plain_vit
    own = load_file(ready.model / "model.safetensors")

    found, result = scores(ready, attack(own), tmp_path)

    assert not result.accused
    assert max(found.values()) < 5


def test_a_small_rotation_that_looks_like_a_drift_is_tried_before_giving_up(plain_vit, tmp_path, monkeypatch):
    monkeypatch.setattr(align, "MIN_ROW_COSINE", 0.1)  # as if it were small
    monkeypatch.setattr(align, "MAX_SCALE_RATIO", 100.0)
    monkeypatch.setattr(rotation_test, "MIN_STATISTIC", np.inf)
    monkeypatch.setattr(whiten, "MIN_COLOR", np.inf)  # or it is found in the order it has

    _, result = scores(plain_vit, StreamRotation(0.3)(plain_vit.state), tmp_path)

    assert result.looks == 2
    assert result.tensors_aligned > 0
    assert [score.recipient for score in result.accused] == ["alice"]


@pytest.mark.parametrize("strength", [0.003, 0.01, 0.03])
@pytest.mark.parametrize(
    "before_it", [dict, ChannelPermutation(), HeadPermutation(2)], ids=["alone", "units moved", "heads moved"]
)
def test_a_turn_so_small_that_weights_line_up_is_seen_at_the_first_look(plain_vit, tmp_path, strength, before_it):
    copied, _ = scores(plain_vit, plain_vit.state, tmp_path)

    after, result = scores(plain_vit, StreamRotation(strength)(before_it(plain_vit.state)), tmp_path)

    assert after["alice"] >= 0.95 * copied["alice"]
    assert result.looks == 1
    assert result.tensors_aligned > 0 or strength == 0.003


def drifted(state):
    """Imitates fine-tuning: each layer changes along the few directions of its inputs."""
    rng = torch.Generator().manual_seed(0)
    found = dict(state)
    for name, tensor in state.items():
        if tensor.ndim == 2:
            ways, inputs = torch.randn(len(tensor), 8, generator=rng), torch.randn(8, tensor.shape[1], generator=rng)
            noise = torch.randn(tensor.shape, generator=rng)
            found[name] = tensor + 0.06 * tensor.std() * (ways @ inputs / 8**0.5 + noise)
    return found


def test_a_fine_tuned_suspect_is_not_changed_unless_it_is_rotated(plain_vit, tmp_path, monkeypatch):
    trained, result = scores(plain_vit, drifted(plain_vit.state), tmp_path)
    assert (result.tensors_aligned, result.looks) == (0, 1)

    after, result = scores(plain_vit, StreamRotation(0.03)(drifted(plain_vit.state)), tmp_path)

    assert after["alice"] >= 0.95 * trained["alice"]
    assert result.tensors_aligned > 0


def test_a_stranger_is_given_up_after_a_few_layers(plain_vit, tmp_path, monkeypatch):
    monkeypatch.setattr(layer_pairs, "SOME_ATTENTIONS", 1)
    monkeypatch.setattr(layer_pairs, "SOME_OTHERS", 1)
    monkeypatch.setattr(align, "PROBED_TENSORS", 2)
    fit_rotations, rearranged = [], []
    real, put = layer_pairs.LayerPairs.fit_rotations, align.match_weights
    monkeypatch.setattr(
        layer_pairs.LayerPairs, "fit_rotations", lambda self, names: fit_rotations.append(names) or real(self, names)
    )
    monkeypatch.setattr(align, "match_weights", lambda *of: rearranged.append(of) or put(*of))
    other = load_file(save_timm(tmp_path / "other", "test_vit", seed=5, num_classes=10) / "model.safetensors")

    _, result = scores(plain_vit, other, tmp_path)

    assert result.tensors_aligned == 0
    (probed,) = fit_rotations
    assert len(probed) <= 3 < len(plain_vit.base.carriers)
    assert 1 <= len(rearranged) <= 3


def test_hidden_units_are_aligned_by_the_weights_alone_if_no_model_can_be_built(tmp_path):
    model, vault = save_plain(tmp_path / "model"), unlocked_vault(tmp_path / "vault")
    with Issuer(model, vault, PLAIN_SETTINGS) as issuer:
        copy = issuer.issue("alice", tmp_path / "copy")
    state = load_file(copy.path / "model.safetensors")
    hidden = {name for name in state if ".fc" in name}
    save_file({n: t.contiguous() for n, t in ChannelPermutation()(state).items()}, tmp_path / "suspect.safetensors")

    with open_checkpoint(model) as original, open_checkpoint(tmp_path / "suspect.safetensors") as suspect:
        (base,) = vault.bases()
        found = align.align_suspect(base, original, suspect, match_tensors(base, original, suspect))
        back = {name: torch.from_numpy(found.read(info).view("<f4")) for name, info in found.aligned_tensors.items()}

    assert set(back) == hidden
    for name, values in back.items():
        assert torch.allclose(
            values.reshape(state[name].shape), state[name], atol=3e-3 * float(state[name].abs().max())
        )
    assert [score.recipient for score in trace(tmp_path / "suspect.safetensors", vault).accused] == ["alice"]
    assert len(plain_arrays()) == len(state)
