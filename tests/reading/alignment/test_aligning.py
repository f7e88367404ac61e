from types import SimpleNamespace

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from small_models import SETTINGS, plain_arrays, save_plain, save_timm, unlocked_vault

from hf_fingerprint import Issuer, trace
from hf_fingerprint.attacks import (
    ChannelShuffle,
    HeadShuffle,
    MagnitudePruning,
    Quantization,
    RowRescaling,
    StreamShuffle,
)
from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.reading import match_tensors, read_suspect
from hf_fingerprint.reading.alignment import align, aligning


HEADS = 3


def everything(state):
    return StreamShuffle(1)(HeadShuffle(HEADS, 2)(ChannelShuffle(seed=3)(state)))


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
def resnet(tmp_path_factory):
    """The same of a residual network."""
    return ready(tmp_path_factory.mktemp("resnet"), "test_resnet")


def scores(case, state, tmp_path):
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "suspect.safetensors")
    result = trace(tmp_path / "suspect.safetensors", case.vault)
    assert {score.recipient for score in result.accused} <= {"alice"}
    return {score.recipient: score.score for score in result.scores}, result


VIT = {
    "heads": HeadShuffle(HEADS),
    "hidden units": ChannelShuffle(),
    "residual stream": StreamShuffle(),
    "all of them": everything,
    "all of them, int8": lambda state: Quantization(8)(everything(state)),
    "all of them, half pruned": lambda state: MagnitudePruning(0.5)(everything(state)),
}


@pytest.mark.parametrize("case", VIT)
def test_a_transformers_channels_in_another_order_are_put_back(vit, tmp_path, case):
    before, _ = scores(vit, vit.state, tmp_path)

    after, result = scores(vit, VIT[case](vit.state), tmp_path)

    assert after["alice"] >= 0.9 * before["alice"]
    assert [score.recipient for score in result.accused] == ["alice"]
    assert result.tensors_aligned > 0
    assert result.lineage.descends


@pytest.mark.parametrize(
    "attack",
    [ChannelShuffle(), RowRescaling(), RowRescaling(flip=True), RowRescaling(strength=3.0, flip=True)],
    ids=str,
)
def test_a_networks_rows_moved_rescaled_or_flipped_are_put_back(resnet, tmp_path, attack):
    before, _ = scores(resnet, resnet.state, tmp_path)

    after, result = scores(resnet, attack(resnet.state), tmp_path)

    assert after["alice"] >= 0.9 * before["alice"]
    assert result.tensors_aligned > 0


def test_what_lines_up_is_read_as_it_is_and_no_model_is_built(vit, tmp_path, monkeypatch):
    monkeypatch.setattr(aligning, "build_model", lambda source: pytest.fail("built"))

    for attack in (dict, Quantization(4), MagnitudePruning(0.7)):
        _, result = scores(vit, attack(vit.state), tmp_path)
        assert result.tensors_aligned == 0
        assert [score.recipient for score in result.accused] == ["alice"]


def test_without_alignment_the_mark_is_lost(vit, tmp_path):
    save_file({n: t.contiguous() for n, t in everything(vit.state).items()}, tmp_path / "suspect.safetensors")

    with open_checkpoint(vit.model) as original, open_checkpoint(tmp_path / "suspect.safetensors") as suspect:
        as_it_is = read_suspect(vit.base, original, suspect, aligned=False)
        put_back = read_suspect(vit.base, original, suspect)

    assert not as_it_is.lineage.descends
    assert put_back.lineage.descends


def test_a_stranger_is_not_made_a_descendant(vit, tmp_path):
    other = load_file(save_timm(tmp_path / "other", "test_vit3", seed=5, num_classes=10) / "model.safetensors")

    found, result = scores(vit, other, tmp_path)

    assert not result.accused
    assert not result.lineage.descends
    assert max(found.values()) < 5


def test_the_base_itself_in_another_order_accuses_nobody(vit, tmp_path):
    own = load_file(vit.model / "model.safetensors")

    found, result = scores(vit, everything(own), tmp_path)

    assert not result.accused
    assert max(found.values()) < 5


def test_hidden_units_are_put_back_by_the_weights_alone_where_no_model_can_be_built(tmp_path):
    model, vault = save_plain(tmp_path / "model"), unlocked_vault(tmp_path / "vault")
    with Issuer(model, vault, SETTINGS) as issuer:
        copy = issuer.issue("alice", tmp_path / "copy")
    state = load_file(copy.path / "model.safetensors")
    hidden = {name for name in state if ".fc" in name}
    save_file({n: t.contiguous() for n, t in ChannelShuffle()(state).items()}, tmp_path / "suspect.safetensors")

    with open_checkpoint(model) as original, open_checkpoint(tmp_path / "suspect.safetensors") as suspect:
        (base,) = vault.bases()
        found = align(base, original, suspect, match_tensors(base, original, suspect))
        back = {name: torch.from_numpy(found.read(info).view("<f4")) for name, info in found.moved.items()}

    assert set(back) == hidden
    for name, values in back.items():
        assert torch.allclose(
            values.reshape(state[name].shape), state[name], atol=3e-3 * float(state[name].abs().max())
        )
    assert [score.recipient for score in trace(tmp_path / "suspect.safetensors", vault).accused] == ["alice"]
    assert len(plain_arrays()) == len(state)
