import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hf_fingerprint import Issuer, trace
from hf_fingerprint.attacks import ChannelPermutation, Renaming
from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.checkpoints.tensor_names import to_timm
from hf_fingerprint.extraction import to_base_names
from tests.helpers.small_models import SETTINGS, save_timm, save_vit, unlocked_vault


@pytest.fixture(scope="module")
def timm_vit(tmp_path_factory):
    """A base of timm in a vault, with alice's copy of it."""
    folder = tmp_path_factory.mktemp("timm")
    model, vault = save_timm(folder / "model", "test_vit", num_classes=10), unlocked_vault(folder / "vault")
    with Issuer(model, vault, SETTINGS) as issuer:
        copy = issuer.issue("alice", folder / "copy")
        return vault, issuer.base, load_file(copy.path / "model.safetensors")


def renamed(state):
    import torch

    other = Renaming()({name: torch.from_numpy(values) for name, values in state.items()})
    return {name: tensor.numpy() for name, tensor in other.items()}


def test_what_was_split_is_read_as_one_from_any_byte_to_any(timm_vit, tmp_path):
    _, base, state = timm_vit
    save_file(renamed(state), tmp_path / "other.safetensors")

    with open_checkpoint(tmp_path / "other.safetensors") as suspect:
        seen = to_base_names(base, suspect)
        assert seen.tensors.keys() == state.keys()
        for name, values in state.items():
            info, whole = seen.tensors[name], values.tobytes()
            assert info.shape == values.shape
            assert seen.read(info).tobytes() == whole
            for start, stop in ((0, 4), (len(whole) // 4, len(whole) // 2 + 4), (len(whole) - 8, len(whole))):
                out = np.zeros(stop - start, np.uint8)
                assert seen.read(info, start, stop, out).tobytes() == whole[start:stop]
                assert out.tobytes() == whole[start:stop]


def test_a_copy_in_the_other_librarys_names_is_traced_as_before(timm_vit, tmp_path):
    vault, _, state = timm_vit
    for name, content in (("one", state), ("other", renamed(state))):
        save_file(content, tmp_path / f"{name}.safetensors")

    one, other = (trace(tmp_path / f"{name}.safetensors", vault) for name in ("one", "other"))

    assert [score.recipient for score in other.accused] == ["alice"]
    assert other.accused[0].score == pytest.approx(one.accused[0].score, rel=1e-6)
    assert other.tensors_matched == one.tensors_matched
    assert other.tensors_aligned == 0


@pytest.mark.parametrize("permuted", [True, False])
@pytest.mark.parametrize("names", ["the base's", "the other library's"])
def test_a_prefix_of_all_names_is_stripped(timm_vit, tmp_path, names, permuted):
    """As in a checkpoint of a larger model, which has further tensors."""
    import torch

    vault, _, state = timm_vit
    if permuted:
        moved = ChannelPermutation()({name: torch.from_numpy(values) for name, values in state.items()})
        state = {name: tensor.numpy() for name, tensor in moved.items()}
    one = state if names == "the base's" else renamed(state)
    more = {"net.encoder.gate.weight": np.ones((3, 5), np.float32), "decoder.weight": np.ones(7, np.float32)}
    save_file(one, tmp_path / "one.safetensors")
    save_file({f"net.encoder.{name}": values for name, values in one.items()} | more, tmp_path / "within.safetensors")

    plain, within = (trace(tmp_path / f"{name}.safetensors", vault) for name in ("one", "within"))

    assert [score.recipient for score in within.accused] == ["alice"]
    assert within.accused[0].score == pytest.approx(plain.accused[0].score, rel=1e-6)
    assert within.tensors_aligned == plain.tensors_aligned


@pytest.mark.parametrize("prefix", ["", "net."])
def test_decoys_do_not_take_the_places_of_the_suspects_tensors(timm_vit, tmp_path, prefix):
    """Neither do more of them under a prefix, nor fewer of them without it."""
    _, base, state = timm_vit
    other = renamed(state)
    decoys = {f"zzz.{name}": np.ones_like(values) for name, values in (other | state).items()}
    if prefix:
        decoys = {name: np.ones_like(values) for name, values in list(state.items())[: len(state) // 3]}
    own = {f"{prefix}{name}": values for name, values in other.items()}
    save_file(own | decoys, tmp_path / "suspect.safetensors")

    with open_checkpoint(tmp_path / "suspect.safetensors") as suspect:
        seen = to_base_names(base, suspect)
        assert all(seen.read(seen.tensors[name]).tobytes() == values.tobytes() for name, values in state.items())


def test_a_base_of_transformers_is_found_in_timms_names(tmp_path):
    model, vault = save_vit(tmp_path / "vit"), unlocked_vault(tmp_path / "vault")
    with Issuer(model, vault, SETTINGS) as issuer:
        copy = issuer.issue("alice", tmp_path / "copy")
    state = {to_timm(name): values for name, values in load_file(copy.path / "model.safetensors").items()}
    for name in [name for name in state if ".attn.q." in name]:
        parts = [state.pop(name.replace(".attn.q.", f".attn.{letter}.")) for letter in "qkv"]
        state[name.replace(".attn.q.", ".attn.qkv.")] = np.concatenate(parts)
    save_file(state, tmp_path / "suspect.safetensors")

    result, before = trace(tmp_path / "suspect.safetensors", vault), trace(copy.path, vault)

    assert [score.recipient for score in result.accused] == ["alice"]
    assert result.accused[0].score == pytest.approx(before.accused[0].score, rel=1e-6)


def test_a_suspect_in_the_bases_names_or_in_unknown_ones_is_not_changed(timm_vit, tmp_path):
    _, base, state = timm_vit
    for content in (state, {f"tensor{i}": values for i, values in enumerate(state.values())}):
        save_file(content, tmp_path / "suspect.safetensors")
        with open_checkpoint(tmp_path / "suspect.safetensors") as suspect:
            assert to_base_names(base, suspect) is suspect
