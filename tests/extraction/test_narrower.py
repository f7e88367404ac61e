"""A suspect whose channels were pruned away is read in the base's shapes, with zeros for what is missing."""

from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch

from hf_fingerprint import Issuer, trace
from hf_fingerprint.attacks import ChannelPermutation, ChannelRemoval, Compose
from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.checkpoints.dtypes import to_float32
from hf_fingerprint.extraction import channel_search, narrower
from hf_fingerprint.extraction.narrower import may_be_narrower, pair_narrower, restore_channels
from hf_fingerprint.outcomes import Outcome
from tests.helpers.pruned_channels import remove_channels
from tests.helpers.small_models import PLAIN_SETTINGS, SETTINGS, plain_arrays, save_plain, save_timm, unlocked_vault


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A base, open, its vault with three copies, and the weights of one of these."""
    root = tmp_path_factory.mktemp("case")
    vault = unlocked_vault(root / "vault")
    with Issuer(save_plain(root / "model", plain_arrays(blocks=8)), vault, PLAIN_SETTINGS) as issuer:
        copies = list(issuer.issue_all(["alice", "bob", "carol"], root / "copies"))
        with open_checkpoint(root / "model") as original:
            arrays = load_file(copies[0].path / "model.safetensors")
            yield SimpleNamespace(base=issuer.base, original=original, arrays=arrays, vault=vault, root=root)


def saved(case: SimpleNamespace, arrays: dict[str, np.ndarray]):
    path = case.root / "suspect.safetensors"
    save_file({name: np.ascontiguousarray(values) for name, values in arrays.items()}, path)
    return path


def nameless(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"onnx::{place}": arrays[name] for place, name in enumerate(sorted(arrays, reverse=True))}


def swapped(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays with the names of other blocks' tensors."""

    def moved(name: str) -> str:
        if not name.startswith("blocks."):
            return name
        _, block, rest = name.split(".", 2)
        return f"blocks.{int(block) ^ 1}.{rest}"

    return {moved(name): values for name, values in arrays.items()}


def traced(case: SimpleNamespace, arrays: dict[str, np.ndarray]):
    return trace(saved(case, arrays), case.vault, all_scores=True)


def zeroed(case: SimpleNamespace, share: float) -> dict[str, np.ndarray]:
    """The copy with 0 in the channels that pruning removes: what an ideal alignment would see."""
    index = {name: np.arange(1, values.size + 1).reshape(values.shape) for name, values in case.arrays.items()}
    found = {}
    for name, kept in remove_channels(index, share).items():
        found[name] = np.where(np.isin(index[name], kept), case.arrays[name], np.zeros_like(case.arrays[name]))
    return found


@pytest.mark.parametrize("share", [0.1, 0.25, 0.4])
def test_what_is_left_lies_where_the_copy_has_it_and_the_rest_is_zero(case, share):
    with open_checkpoint(saved(case, remove_channels(case.arrays, share)), suspect=True) as suspect:
        restored, complete = restore_channels(case.base, case.original, suspect)
        ideal = zeroed(case, share)
        assert complete
        for name in ideal.keys() - {"bn.num_batches_tracked"}:
            info = restored.tensors[name]
            values = to_float32(restored.read(info), info.dtype).reshape(info.shape)
            assert np.array_equal(values, ideal[name]), name


@pytest.mark.parametrize("rename", [dict, nameless, swapped])
@pytest.mark.parametrize("share", [0.1, 0.4])
def test_a_pruned_copy_is_named_with_the_score_that_its_channels_allow(case, share, rename):
    arrays = remove_channels(case.arrays, share)
    ideal = {each.recipient: each.score for each in traced(case, zeroed(case, share)).scores}
    result = traced(case, rename(arrays))
    scores = {each.recipient: each.score for each in result.scores}
    assert [each.recipient for each in result.accused] == ["alice"]
    assert scores["alice"] >= 0.99 * ideal["alice"]
    assert max(scores["bob"], scores["carol"]) < 5


def test_training_after_pruning_costs_no_more_than_it_does_alone(case):
    rng = np.random.default_rng(0)
    arrays = remove_channels(case.arrays, 0.25)
    noise = {name: 0.03 * values.std() for name, values in arrays.items() if values.ndim > 1 and values.size}
    trained = {n: (v + noise.get(n, 0) * rng.standard_normal(v.shape)).astype(v.dtype) for n, v in arrays.items()}
    assert [each.recipient for each in traced(case, trained).accused] == ["alice"]


def test_a_narrower_model_of_other_weights_is_another_model(case):
    other = remove_channels(plain_arrays(seed=1, blocks=8), 0.25)
    result = traced(case, other)
    assert result.outcome is Outcome.NOT_COMPARABLE and not result.accused


def test_the_base_itself_without_channels_is_nobodys(case):
    result = traced(case, remove_channels(plain_arrays(blocks=8), 0.1))
    assert result.outcome is Outcome.NOBODY and not result.accused


def test_a_suspect_that_was_not_compared_completely_is_not_called_another_model(case, monkeypatch):
    monkeypatch.setattr(channel_search, "MAX_WORK", 0)
    result = traced(case, remove_channels(case.arrays, 0.25))
    assert result.outcome is Outcome.NOT_READABLE
    assert "36x36 where 48x48 is expected" in result.reason


def test_a_suspect_of_the_base_s_shapes_stays_unchanged(case):
    with open_checkpoint(saved(case, case.arrays), suspect=True) as suspect:
        assert pair_narrower(case.base, suspect) == {}
        assert restore_channels(case.base, case.original, suspect) == (suspect, True)


def test_a_pruned_copy_in_the_same_tensors_as_the_base_is_not_cleared(case):
    base, pruned = plain_arrays(blocks=8), remove_channels(case.arrays, 0.25)
    joined = {}
    for name, values in base.items():
        if values.ndim and values.size:
            padding = [(0, 0), *((0, a - b) for a, b in zip(values.shape[1:], pruned[name].shape[1:], strict=True))]
            joined[name] = np.concatenate([values, np.pad(pruned[name], padding)])

    result = traced(case, joined)

    assert result.accused or result.outcome is Outcome.NOT_READABLE


@pytest.mark.parametrize(
    ("theirs", "fits"),
    [
        ((36, 36), True),
        ((48, 48), True),
        ((48, 12), True),
        ((48, 11), False),
        ((49, 36), False),
        ((36,), False),
        ((36, 36, 1), False),
        ((0, 48), False),
    ],
)
def test_shapes_tell_what_may_be_left_of_a_layer(theirs, fits):
    assert may_be_narrower(theirs, (48, 48)) is fits


@pytest.mark.integration
@pytest.mark.parametrize("architecture", ["test_resnet", "test_efficientnet", "test_vit", "test_convnext"])
def test_hidden_channels_that_were_removed_and_moved_cost_what_they_held(tmp_path, architecture):
    vault = unlocked_vault(tmp_path / "vault")
    with Issuer(save_timm(tmp_path / "model", architecture, num_classes=10), vault, SETTINGS) as issuer:
        copies = list(issuer.issue_all(["alice", "bob"], tmp_path / "copies"))
    state = load_torch(copies[0].path / "model.safetensors")
    removed = Compose(ChannelRemoval(0.25), ChannelPermutation())(state)
    save_torch({name: tensor.contiguous() for name, tensor in removed.items()}, tmp_path / "suspect.safetensors")

    result = trace(tmp_path / "suspect.safetensors", vault, all_scores=True)

    assert [each.recipient for each in result.accused] == ["alice"]
    whole = trace(copies[0].path, vault).accused[0].score
    assert result.accused[0].score >= 0.7 * whole


def test_normalizations_tell_the_channels_of_a_suspect_whose_first_layers_are_others(tmp_path):
    rng = np.random.default_rng(0)
    arrays = plain_arrays(blocks=8)
    arrays |= {f"blocks.{block}.norm1.bias": rng.standard_normal(48).astype(np.float32) for block in range(8)}
    vault = unlocked_vault(tmp_path / "vault")
    with Issuer(save_plain(tmp_path / "model", arrays), vault, PLAIN_SETTINGS) as issuer:
        copies = list(issuer.issue_all(["alice", "bob"], tmp_path / "copies"))
    pruned = remove_channels(load_file(copies[0].path / "model.safetensors"), 0.25)
    for name in ("patch_embed.proj.weight", "conv.weight"):
        pruned[name] = rng.standard_normal(pruned[name].shape).astype(np.float32)
    noisy = {n: v + 0.003 * v.std() * rng.standard_normal(v.shape).astype(v.dtype) for n, v in pruned.items()}
    save_file(noisy | {"bn.num_batches_tracked": np.array(1)}, tmp_path / "suspect.safetensors")

    result = trace(tmp_path / "suspect.safetensors", vault)

    assert [each.recipient for each in result.accused] == ["alice"]


def test_normalizations_suggest_orders_only_as_long_as_the_work_allows(case, monkeypatch):
    pruned = remove_channels(case.arrays, 0.25)
    base = plain_arrays(blocks=8)
    extra = {f"n.{i}.{kind}": np.ones(48, np.float32) for i in range(6) for kind in ("weight", "bias")}
    thin = {name: values[:36] for name, values in extra.items()}
    save_file(base | extra, case.root / "wide.safetensors")
    save_file(pruned | thin, case.root / "thin.safetensors")
    monkeypatch.setattr(narrower, "MAX_SUGGESTED_WORK", 2 * 36**2 * 48)

    with (
        open_checkpoint(case.root / "wide.safetensors") as original,
        open_checkpoint(case.root / "thin.safetensors", suspect=True) as suspect,
    ):
        assert len(list(narrower._suggest_orders(original, suspect))) == 2
