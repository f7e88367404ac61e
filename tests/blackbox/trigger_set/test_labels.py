import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from hf_fingerprint.blackbox.trigger_set.labels import BLOCK_SIZE, assigned_triggers, keyed_labels, label_blocks
from hf_fingerprint.errors import CodeError
from hf_fingerprint.keys import new_secret


KEY = bytes(range(32))


def test_labels_are_the_keys_for_ever():
    assert keyed_labels([KEY], 12, 10).tolist() == [[5, 3, 7, 3, 2, 6, 9, 7, 7, 8, 6, 6]]
    assert keyed_labels([KEY], 6, 1000).tolist() == [[502, 771, 919, 330, 846, 705]]


@given(st.integers(1, 50), st.integers(1, 50), st.sampled_from([2, 3, 10, 1000, 65536]))
def test_fewer_triggers_are_a_prefix(few, more, classes):
    short, long = keyed_labels([KEY], few, classes), keyed_labels([KEY], few + more, classes)

    assert np.array_equal(short, long[:, :few])
    assert long.max() < classes


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_labels_are_uniform_and_independent_between_keys(classes):
    labels = keyed_labels([new_secret() for _ in range(100)], 2000, classes)

    assert chisquare(np.bincount(labels.ravel(), minlength=classes)).pvalue > 1e-6
    agreeing = (labels[1:] == labels[0]).mean(1) - 1 / classes
    assert np.abs(agreeing).max() < 5 * np.sqrt((1 - 1 / classes) / classes / 2000)


def test_blocks_give_the_same(monkeypatch):
    keys = [new_secret() for _ in range(10)]
    monkeypatch.setattr("hf_fingerprint.blackbox.trigger_set.labels.BLOCK_SIZE", 4)

    found = list(label_blocks(keys, 5, 10, 0.5))

    assert [rows for rows, _, _ in found] == [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert np.array_equal(np.concatenate([labels for _, labels, _ in found]), keyed_labels(keys, 5, 10))
    assert np.array_equal(np.concatenate([assigned for _, _, assigned in found]), assigned_triggers(keys, 5, 0.5))
    assert BLOCK_SIZE > 4


@pytest.mark.parametrize("assigned_share", [1.0, 0.5, 0.1, 1e-4])
def test_each_trigger_is_assigned_independently_of_all_others(assigned_share):
    assigned = assigned_triggers([new_secret() for _ in range(1000)], 200, assigned_share)

    spread = np.sqrt(max(assigned_share * (1 - assigned_share), 1e-12) / assigned.size)
    assert abs(assigned.mean() - assigned_share) <= 5 * spread + 1 / 65536
    assert abs((assigned[1:] & assigned[0]).mean() - assigned_share * assigned[0].mean()) <= 5 * np.sqrt(
        assigned_share / assigned.size
    )


@pytest.mark.parametrize("assigned_share", [0.0, -0.5, 1.1, 1e-6])
def test_an_assigned_share_out_of_range_is_refused(assigned_share):
    with pytest.raises(CodeError, match="of the triggers"):
        assigned_triggers([new_secret()], 10, assigned_share)


@pytest.mark.parametrize(("triggers", "classes"), [(0, 10), (5, 1), (5, 70_000)])
def test_what_cannot_tell_copies_is_refused(triggers, classes):
    with pytest.raises(CodeError, match=f"{triggers} trigger images with {classes} classes"):
        keyed_labels([KEY], triggers, classes)
