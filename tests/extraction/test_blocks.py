"""Blocks that were dropped, inserted, repeated or reordered are read as the base's blocks that they are."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from hf_fingerprint import Issuer, Outcome, trace
from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.checkpoints.dtypes import to_float32
from hf_fingerprint.extraction.blocks import Block, block_tensors
from hf_fingerprint.extraction.placing import place_tensors
from tests.helpers.small_models import PLAIN_SETTINGS, plain_arrays, save_plain, unlocked_vault


DEPTH = 6
BLOCK = re.compile(r"blocks\.(\d+)\.(.*)")


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A base of six blocks, open, and the weights of one marked copy of it."""
    root = tmp_path_factory.mktemp("case")
    model, vault = save_plain(root / "model", plain_arrays(blocks=DEPTH)), unlocked_vault(root / "vault")
    with Issuer(model, vault, PLAIN_SETTINGS) as issuer:
        arrays = load_file(issuer.issue("alice", root / "copy").path / "model.safetensors")
        base = issuer.base
    with open_checkpoint(model) as original:
        names = [carrier.name for carrier in base.carriers]
        own = load_file(model / "model.safetensors")
        yield SimpleNamespace(
            base=base, original=original, arrays=arrays, own=own, names=names, root=root, vault=vault, model=model
        )


def reordered(arrays, order, rng=None):
    """The blocks in another order, each as often as it is named; with `rng`, their hidden channels are permuted."""
    found = {name: array for name, array in arrays.items() if not BLOCK.match(name)}
    for index, block in enumerate(order):
        own = {m[2]: a for n, a in arrays.items() if (m := BLOCK.fullmatch(n)) and int(m[1]) == block}
        if rng is not None:
            hidden = rng.permutation(len(own["mlp.fc1.weight"]))
            own["mlp.fc1.weight"] = own["mlp.fc1.weight"][hidden]
            own["mlp.fc2.weight"] = own["mlp.fc2.weight"][:, hidden]
            heads = np.arange(48).reshape(3, 16)[rng.permutation(3)].reshape(-1)
            rows = np.concatenate([heads + part * 48 for part in range(3)])
            own |= {"attn.qkv.weight": own["attn.qkv.weight"][rows], "attn.qkv.bias": own["attn.qkv.bias"][rows]}
            own["attn.proj.weight"] = own["attn.proj.weight"][:, heads]
        found |= {f"blocks.{index}.{rest}": np.ascontiguousarray(array) for rest, array in own.items()}
    return found


def placed(case, arrays):
    path = case.root / "suspect.safetensors"
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
    with open_checkpoint(path, suspect=True) as suspect:
        found = place_tensors(case.base, case.original, suspect)
        return {
            n: to_float32(found.suspect.read(i), i.dtype).reshape(i.shape).copy() for n, i in found.matches.items()
        }


def in_blocks(case, blocks):
    return {name for name in case.names if not (m := BLOCK.fullmatch(name)) or int(m[1]) in blocks}


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, DEPTH - 1), min_size=2, max_size=9))
def test_blocks_in_any_order_and_number_are_read(case, order):
    found = placed(case, reordered(case.arrays, order))

    assert found.keys() == in_blocks(case, order)
    for name, values in found.items():
        assert np.array_equal(values, case.arrays[name]), name


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, DEPTH - 1), min_size=2, max_size=8, unique=True), st.integers(0, 99))
def test_blocks_whose_hidden_channels_and_heads_are_permuted_are_paired(case, order, seed):
    found = placed(case, reordered(case.arrays, order, np.random.default_rng(seed)))

    assert found.keys() >= in_blocks(case, order)
    for name in in_blocks(case, order):
        assert np.array_equal(np.sort(found[name], axis=None), np.sort(case.arrays[name], axis=None)), name


def test_blocks_of_a_permuted_stream_are_paired(case):
    rng = np.random.default_rng(0)
    arrays, stream = reordered(case.arrays, [1, 3, 4, 5], rng), rng.permutation(48)
    for name in arrays:
        if re.search(r"qkv\.weight|fc1\.weight", name):
            arrays[name] = arrays[name][:, stream]
        elif re.search(r"proj\.weight|fc2\.weight|norm1", name):
            arrays[name] = arrays[name][stream]

    found = placed(case, arrays)

    for name in in_blocks(case, [1, 3, 4, 5]) - {"conv.weight"}:
        assert np.array_equal(np.sort(found[name], axis=None), np.sort(case.arrays[name], axis=None)), name


def test_an_inserted_identity_is_not_taken_for_the_block_that_it_was_copied_from(case):
    arrays = reordered(case.arrays, [0, 1, 1, 2, 3, 3, 4, 5])
    for index in (1, 4):  # in front of the block itself
        for part in ("attn.proj", "mlp.fc2"):
            arrays[f"blocks.{index}.{part}.weight"] = np.zeros_like(arrays[f"blocks.{index}.{part}.weight"])

    found = placed(case, arrays)

    assert all(np.array_equal(found[name], case.arrays[name]) for name in case.names)


@pytest.mark.parametrize("value", [9e5, -9e5, 1e-42, 3e38, np.nan, 0])
def test_blocks_of_absurd_weights_are_none_of_the_bases(case, value):
    absurd = {n: np.full_like(a, value) if BLOCK.match(n) else a for n, a in case.arrays.items()}

    found = placed(case, absurd)

    assert all(np.array_equal(found[name], case.arrays[name]) for name in in_blocks(case, []))


@pytest.mark.parametrize("before", [0, 4])
def test_blocks_whose_tensors_are_padded_with_zeros_are_read(case, before):
    moved = reordered(case.arrays, [5, 3, 1, 0])
    wide = {n: np.pad(a, ((before, 8 - before),) * 2) if a.ndim == 2 and a.size else a for n, a in moved.items()}

    found = placed(case, wide)

    for name in in_blocks(case, [5, 3, 1, 0]):
        assert np.array_equal(found[name], case.arrays[name]), name


def test_other_models_blocks_are_not_moved(case):
    arrays = plain_arrays(seed=7, blocks=8)
    path = case.root / "other.safetensors"
    save_file(arrays, path)
    with open_checkpoint(path, suspect=True) as suspect:
        assert place_tensors(case.base, case.original, suspect).suspect is suspect


def test_a_base_and_a_copy_of_it_that_are_stacked_name_the_recipient_and_the_base_alone_nobody(case):
    stacked = reordered(case.own, [*range(6)]) | {
        f"blocks.{int(m[1]) + 6}.{m[2]}": a for n, a in case.arrays.items() if (m := BLOCK.fullmatch(n))
    }
    half = {n: a for n, a in stacked.items() if not (m := BLOCK.fullmatch(n)) or 3 <= int(m[1]) < 9}
    half = reordered(half, [3, 4, 5, 6, 7, 8])

    for suspect, expected in ((stacked, {"alice"}), (half, {"alice"}), (reordered(case.own, [0, 2, 2, 4, 5]), set())):
        path = case.root / "stacked.safetensors"
        save_file({name: np.ascontiguousarray(array) for name, array in suspect.items() if array.size}, path)
        result = trace(path, case.vault, base=case.model)
        assert {score.recipient for score in result.accused} == expected
        assert expected or result.outcome is Outcome.NOBODY, result.reason


def test_the_innermost_index_that_several_weights_share_is_the_blocks():
    shapes = {
        "stages.0.downsample.1.weight": (8, 4, 2, 2),
        "stages.0.blocks.0.mlp.fc1.weight": (8, 4),
        "stages.0.blocks.0.mlp.fc2.weight": (4, 8),
        "stages.0.blocks.0.norm.bias": (4,),
        "module.stages.0.blocks.1.mlp.fc1.weight": (8, 4),
        "module.stages.0.blocks.1.mlp.fc2.weight": (4, 8),
        "head.weight": (3, 4),
    }

    found = block_tensors(shapes)

    assert found[Block("stages.0.blocks", 0)] == {
        rest: f"stages.0.blocks.0.{rest}" for rest in ("mlp.fc1.weight", "mlp.fc2.weight", "norm.bias")
    }
    assert found.keys() == {Block("stages.0.blocks", 0), Block("stages.0.blocks", 1)}
