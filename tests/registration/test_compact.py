import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_fingerprint import FingerprintConfig, Issuer, register, trace
from hf_fingerprint.checkpoints import TensorInfo, open_checkpoint
from hf_fingerprint.errors import CarrierError, CodeError
from hf_fingerprint.registration.compact import MAX_SHARE, compact_window
from hf_fingerprint.vault.schema import base_from_row, base_to_row
from tests.helpers.small_models import new_vault, plain_arrays, save_plain


SETTINGS = FingerprintConfig(coalition=2, expected_recipients=4, carriers="compact", amplitude=0.003)


def layout(sizes, files=None):
    """Tensors of one row each, one after another."""
    found, offset = {}, 8
    for number, (size, file) in enumerate(zip(sizes, files or [0] * len(sizes), strict=True)):
        found[f"t{number}"] = TensorInfo(f"t{number}", "F32", (1, size), file, offset, 4 * size)
        offset += 4 * size
    return found


@given(st.lists(st.integers(1, 50), min_size=20, max_size=60), st.data())
def test_what_is_chosen_lies_together_within_the_share(sizes, data):
    tensors = layout([*sizes, 3000])
    chosen = [f"t{i}" for i in sorted(data.draw(st.sets(st.integers(0, len(sizes) - 1), min_size=1)))]
    kept = compact_window(tensors, chosen, lambda i: np.full(len(i), 0.01), "x")

    infos = [tensors[chosen[i]] for i in kept]
    span = max(i.offset + i.nbytes for i in infos) - min(i.offset for i in infos)
    assert span <= MAX_SHARE * sum(info.nbytes for info in tensors.values())
    between = [n for n in chosen if infos[0].offset <= tensors[n].offset <= infos[-1].offset]
    assert between == [info.name for info in infos]


def test_of_several_places_the_one_that_promises_most():
    tensors = layout([10] * 100)
    strong = np.where(np.arange(100) // 10 == 7, 0.02, 0.01)

    kept = compact_window(tensors, list(tensors), lambda i: strong[i], "x")

    assert set(kept // 10) == {7}


def test_a_window_lies_in_one_file():
    tensors = layout([10] * 100, [0] * 50 + [1] * 50)

    kept = compact_window(tensors, list(tensors)[48:52], lambda i: np.ones(len(i)), "x")

    assert len({tensors[list(tensors)[48:52][i]].file for i in kept}) == 1


def test_a_model_of_few_large_tensors_is_refused():
    with pytest.raises(CarrierError, match="choose --carriers spread"):
        compact_window(layout([100, 100]), ["t0", "t1"], lambda i: np.ones(len(i)), "x")


def test_copies_differ_in_few_bytes_and_are_identified(tmp_path):
    model, vault = save_plain(tmp_path / "model", plain_arrays(blocks=40)), new_vault(tmp_path / "vault")
    with Issuer(model, vault, SETTINGS) as issuer:
        copies = list(issuer.issue_all(["alice", "bob"], tmp_path / "copies"))

    base = issuer.base
    assert base.compact is not None
    assert base.compact.share <= MAX_SHARE
    files = [np.frombuffer((copy.path / "model.safetensors").read_bytes(), np.uint8) for copy in copies]
    differ = np.flatnonzero(files[0] != files[1])
    assert differ[-1] - differ[0] <= 0.05 * len(files[0])
    vault.unlock("correct horse battery staple")
    for copy in copies:
        assert [one.recipient for one in trace(copy.path, vault).accused] == [copy.recipient]


def test_the_layout_is_a_part_of_the_record(tmp_path):
    model, vault = save_plain(tmp_path / "model", plain_arrays(blocks=40)), new_vault(tmp_path / "vault")
    base = register(model, vault, SETTINGS)

    assert base_from_row(base_to_row(base)).compact == base.compact
    assert base.compact is not None
    assert base.describe()["compact"]["share"] == base.compact.share
    with pytest.raises(CodeError, match="registered with carriers compact, not spread"):
        register(model, vault, FingerprintConfig(carriers="spread"))
    with open_checkpoint(model) as checkpoint:
        assert register(checkpoint, vault) == base


def test_another_layout_is_one_sentence():
    with pytest.raises(CodeError, match="one of spread, compact, got dense"):
        FingerprintConfig(carriers="dense")
