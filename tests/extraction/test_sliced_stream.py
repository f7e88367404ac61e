"""A suspect whose residual stream was sliced (SliceGPT) is rotated back, and read in the directions that are left."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_fingerprint import Issuer, trace
from hf_fingerprint.attacks import (
    Attacker,
    ChannelPermutation,
    Compose,
    FineTuning,
    HeadBasisChange,
    Quantization,
    StreamSlicing,
)
from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.extraction import extract
from hf_fingerprint.extraction.sliced_stream import restore_stream
from hf_fingerprint.outcomes import Outcome
from hf_fingerprint.tracing.detection import drifted_copy_score
from tests.helpers.attackers import make_images
from tests.helpers.small_models import PLAIN_SETTINGS, SETTINGS, build, save_timm, unlocked_vault


pytestmark = pytest.mark.integration
SWIN = {"embed_dim": 16, "depths": (1, 2), "num_heads": (2, 4), "img_size": 56}


def ready(root, architecture):
    """A base, its vault with three copies, and the weights of the base and of a copy."""
    model, vault = save_timm(root / "model", architecture, num_classes=4, img_size=32), unlocked_vault(root / "vault")
    with Issuer(model, vault, SETTINGS) as issuer:
        copies = list(issuer.issue_all(["alice", "bob", "carol"], root / "copies"))
        base = issuer.base
    images, labels = make_images(64, seed=1)
    return SimpleNamespace(
        root=root,
        model=model,
        base=base,
        vault=vault,
        unmarked=load_file(model / "model.safetensors"),
        state=load_file(copies[0].path / "model.safetensors"),
        attacker=Attacker(lambda: build(model).module, images, labels, 16),
    )


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return ready(tmp_path_factory.mktemp("vit"), "test_vit")


@pytest.fixture(scope="module")
def scaled_vit(tmp_path_factory):
    """One with layer scales."""
    return ready(tmp_path_factory.mktemp("scaled"), "test_vit2")


def traced(case, state, change):
    changed = change(state, case.attacker)
    save_file({name: tensor.contiguous() for name, tensor in changed.items()}, case.root / "suspect.safetensors")
    result = trace(case.root / "suspect.safetensors", case.vault, all_scores=True)
    assert {score.recipient for score in result.accused} <= {"alice"}
    return {score.recipient: score.score for score in result.scores}, result


def with_gains(state, attacker):
    """A sliced state whose normalizations have gains, which the layers that read them undo."""
    torch.manual_seed(0)
    found = StreamSlicing(0.2)(state, attacker)
    for name in [name for name in found if name.endswith(("attn.qkv.weight", "mlp.fc1.weight"))]:
        gains = torch.exp(0.5 * torch.randn(found[name].shape[1]))
        found[name] = found[name] / gains
        norm = "norm1" if "qkv" in name else "norm2"
        found[f"{name.rsplit('.', 3)[0]}.{norm}.weight"] = gains
    return found


def unchanged(state, attacker):
    return state


CHANGES = {
    "rotated alone": (StreamSlicing(0.0), 0.85),
    "a tenth": (StreamSlicing(0.1), 0.8),
    "three tenths": (StreamSlicing(0.3), 0.65),
    "a fifth, int8": (Compose(StreamSlicing(0.2), Quantization(8, by_channel=True)), 0.7),
    "a fifth, then trained": (Compose(StreamSlicing(0.2), FineTuning(1e-4, steps=10)), 0.5),
    "a fifth, with gains": (with_gains, 0.7),
    "heads in another basis": (Compose(HeadBasisChange(0.5), StreamSlicing(0.2)), 0.5),
    "hidden units permuted": (Compose(ChannelPermutation(), StreamSlicing(0.2)), 0.25),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_sliced_copy_is_traced_by_what_is_left_of_it(vit, change):
    step, share = CHANGES[change]
    before, _ = traced(vit, vit.state, unchanged)

    after, result = traced(vit, vit.state, step)

    assert [score.recipient for score in result.accused] == ["alice"]
    assert after["alice"] >= share * before["alice"]
    assert max(after["bob"], after["carol"]) < 5


def test_a_sliced_copy_behind_the_whole_base_is_traced(vit):
    alone, _ = traced(vit, vit.state, StreamSlicing(0.2))

    def behind(state, attacker):
        sliced = StreamSlicing(0.2)(state, attacker)
        return vit.unmarked | {f"another.{name}": values for name, values in sliced.items()}

    found, result = traced(vit, vit.state, behind)

    assert [score.recipient for score in result.accused] == ["alice"]
    assert found["alice"] == pytest.approx(alone["alice"], rel=1e-6)


def test_layer_scales_are_folded_in(scaled_vit):
    before, _ = traced(scaled_vit, scaled_vit.state, unchanged)

    after, result = traced(scaled_vit, scaled_vit.state, StreamSlicing(0.2))

    assert [score.recipient for score in result.accused] == ["alice"]
    assert after["alice"] >= 0.7 * before["alice"]


def test_the_base_sliced_is_nobodys_and_less_of_it_counts_as_read(vit):
    whole = traced(vit, vit.unmarked, unchanged)[1]
    _, result = traced(vit, vit.unmarked, StreamSlicing(0.25))

    assert result.outcome is Outcome.NOBODY
    assert result.weights_read == pytest.approx(0.75 * whole.weights_read, rel=0.01)


def test_of_a_sliced_copy_the_share_that_is_left_counts_at_each_position(vit):
    sliced = StreamSlicing(0.25)(vit.state, vit.attacker)
    with open_checkpoint(vit.model) as original:
        whole, part = (
            extract(vit.base, original, open_checkpoint(each, suspect=True)) for each in (vit.state, sliced)
        )

    assert part.similar_counts.sum() == pytest.approx(0.75 * whole.similar_counts.sum(), rel=0.01)
    mark = [np.abs(each.values).sum() / each.mass.sum() for each in (whole, part)]
    assert mark[1] == pytest.approx(mark[0], rel=0.25)  # a whole mark is its mass


def test_another_model_sliced_is_not_the_bases(vit, tmp_path):
    other = save_timm(tmp_path / "other", "test_vit", seed=5, num_classes=4, img_size=32)
    for share in (0.0, 0.25):
        _, result = traced(vit, load_file(other / "model.safetensors"), StreamSlicing(share))
        assert result.outcome is not Outcome.NOBODY and not result.accused


@pytest.mark.parametrize(
    ("architecture", "arguments"), [("test_convnext", {}), ("swin_tiny_patch4_window7_224", SWIN)]
)
def test_another_model_whose_stages_have_streams_of_their_own_is_no_error(tmp_path, architecture, arguments):
    model = save_timm(tmp_path / "model", architecture, num_classes=4, **arguments)
    other = save_timm(tmp_path / "other", architecture, seed=5, num_classes=7, **arguments)
    vault = unlocked_vault(tmp_path / "vault")
    with Issuer(model, vault, PLAIN_SETTINGS) as issuer:
        issuer.issue("alice", tmp_path / "copy")

    assert trace(other, vault).outcome is Outcome.NOT_COMPARABLE


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_the_base_sliced_and_trained_tells_no_more_than_what_a_copy_scores(vit, share):
    step = Compose(StreamSlicing(share), FineTuning(3e-3, steps=40))
    scores, _ = traced(vit, vit.state, step)

    sliced = step(vit.unmarked, vit.attacker)
    with open_checkpoint(vit.model) as original, open_checkpoint(sliced, suspect=True) as suspect:
        expected = drifted_copy_score(vit.base, extract(vit.base, original, suspect), 3, 1e-6)

    assert 0.5 * scores["alice"] < expected < 1.25 * scores["alice"]


def test_a_slice_of_which_no_order_is_left_is_no_acquittal(vit):
    step = Compose(HeadBasisChange(0.5), ChannelPermutation(), StreamSlicing(0.2))

    _, result = traced(vit, vit.unmarked, step)

    assert result.outcome is not Outcome.NOBODY


def test_a_copy_as_issued_is_not_changed_and_no_model_is_built(vit, monkeypatch):
    monkeypatch.setattr("hf_fingerprint.extraction.sliced_stream.find_segments", lambda original: pytest.fail("built"))
    with open_checkpoint(vit.model) as original, open_checkpoint(vit.state, suspect=True) as suspect:
        assert restore_stream(vit.base, original, suspect) == (suspect, {})


@pytest.mark.parametrize("values", [np.nan, np.inf, 1e30, 0.0])
def test_hostile_values_are_no_error(vit, values):
    sliced = StreamSlicing(0.2)(vit.state, vit.attacker)
    sliced["blocks.0.attn.qkv.weight"][:, ::2] = values
    sliced["blocks.1.mlp.fc1.weight"][:] = values

    _, result = traced(vit, sliced, unchanged)

    assert [score.recipient for score in result.accused] == ["alice"]
