import numpy as np
import pytest
import torch

from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.checkpoints.row_samples import load_sampled_rows, sample_row_indices


@pytest.mark.parametrize(("rows", "count"), [(1, 8), (7, 8), (8, 8), (9, 8), (1000, 16), (10**6, 1)])
def test_sampled_rows_are_spread_from_the_first_to_the_last(rows, count):
    chosen = sample_row_indices(rows, count)

    assert len(chosen) == len(set(chosen)) == min(rows, count)
    assert chosen[0] == 0
    assert chosen[-1] == (rows - 1 if count > 1 else 0)
    assert chosen == sorted(chosen)
    gaps = np.diff(chosen)
    assert not len(gaps) or gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("rows", [0, 1, 8, 9, 40])
def test_sampled_rows_are_loaded_without_values_that_are_not_finite(rows):
    values = np.random.default_rng(rows).standard_normal((rows, 3)).astype(np.float32)
    values[:1] = np.nan, np.inf, -np.inf
    with open_checkpoint({"weight": torch.from_numpy(values)}) as checkpoint:
        loaded = load_sampled_rows(checkpoint, checkpoint.tensors["weight"], 8)

    expected = values[sample_row_indices(rows, 8)] if rows else values
    assert np.array_equal(loaded, np.where(np.isfinite(expected), expected, 0).reshape(-1))
