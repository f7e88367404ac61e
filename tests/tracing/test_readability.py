"""If too little of a suspect can be read, the outcome isn't "nobody"."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from hf_fingerprint import Issuer, TraceResult, trace
from hf_fingerprint.outcomes import Outcome
from hf_fingerprint.tracing import verify
from tests.helpers.small_models import PLAIN_SETTINGS, plain_arrays, save_plain, unlocked_vault


Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """Copies of a base, and the vault, unlocked."""
    root = tmp_path_factory.mktemp("case")
    vault, model = unlocked_vault(root / "vault"), save_plain(root / "model")
    with Issuer(model, vault, PLAIN_SETTINGS) as issuer:
        copies = {c.recipient: load_file(c.path / "model.safetensors") for c in issuer.issue_all("ab", root / "out")}
        return SimpleNamespace(vault=vault, copies=copies, base=issuer.base, model=model)


def carriers(case: SimpleNamespace) -> list[str]:
    return [carrier.name for carrier in case.base.carriers]


def changed(case: SimpleNamespace, change: Callable[[np.ndarray], np.ndarray], share: float = 1.0) -> Arrays:
    """Copy a with a share of its carriers changed, from the last on."""
    chosen = carriers(case)[int(len(carriers(case)) * (1 - share)) :]
    return {n: change(w) if n in chosen else w for n, w in case.copies["a"].items()}


def traced(case: SimpleNamespace, arrays: Arrays, folder: Path) -> TraceResult:
    save_file({n: np.ascontiguousarray(w) for n, w in arrays.items()}, folder / "suspect.safetensors")
    return trace(folder / "suspect.safetensors", case.vault)


def integers(weights: np.ndarray) -> np.ndarray:
    return np.round(weights / np.abs(weights).max() * 127).astype(np.int8)


HIDING = {
    "scrambled": lambda w: np.random.default_rng(9).permutation(256).astype(np.uint8)[integers(w).astype(int) + 128],
    "64 bits": lambda w: integers(w).astype(np.int64),
}
CODES = {
    "integers": integers,
    "unsigned": lambda w: (integers(w).astype(int) + 128).astype(np.uint16),
}
LAYOUTS = {
    "axes moved": lambda w: w.T if w.ndim == 2 else w.transpose(2, 3, 1, 0),
    "one long row": lambda w: w.reshape(1, -1),
    "flat": lambda w: w.reshape(-1),
}


@pytest.mark.parametrize("hiding", HIDING)
def test_a_copy_hidden_whole_is_not_readable_and_its_tensors_are_named(case, tmp_path, hiding):
    result = traced(case, changed(case, HIDING[hiding]), tmp_path)

    assert (result.outcome, result.accused) == (Outcome.NOT_READABLE, ())
    assert "blocks.0." in result.reason
    assert "convert them to float tensors" in result.reason
    assert len(result.reason.splitlines()) == 1


@pytest.mark.parametrize("hiding", HIDING)
@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.parametrize("whose", ["a copy's", "the base's"])
def test_what_is_hidden_in_part_clears_nobody(case, tmp_path, hiding, share, whose):
    """A copy is found by its tensors that can be read. Of a suspect whose readable part is the unmarked base's, the
    rest may be a copy's."""
    arrays = changed(case, HIDING[hiding], share)
    if whose == "the base's":
        own = load_file(case.model / "model.safetensors")
        arrays = {n: own[n] if w.shape == own[n].shape and w.dtype == own[n].dtype else w for n, w in arrays.items()}

    result = traced(case, arrays, tmp_path)

    assert result.outcome is (Outcome.ACCUSED if whose == "a copy's" else Outcome.NOT_READABLE)
    assert {score.recipient for score in result.accused} <= {"a"}


@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("layout", ["the base's", "axes moved"])
def test_integers_without_scales_are_fitted_to_the_base(case, tmp_path, codes, layout):
    plain = traced(case, case.copies["a"], tmp_path)
    arrays = changed(case, lambda w: LAYOUTS.get(layout, np.asarray)(CODES[codes](w)))

    result = traced(case, {f"t{i}": array for i, array in enumerate(arrays.values())}, tmp_path)

    assert [score.recipient for score in result.accused] == ["a"]
    assert result.tensors_matched == result.tensors_marked
    assert result.accused[0].score > 0.5 * plain.accused[0].score


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("named", [True, False])
def test_a_copy_in_another_layout_is_read_as_if_in_the_bases(case, tmp_path, layout, named):
    plain = traced(case, case.copies["a"], tmp_path)
    arrays = changed(case, LAYOUTS[layout])
    if not named:
        arrays = {f"onnx::MatMul_{i}": array for i, array in enumerate(arrays.values())}

    result = traced(case, arrays, tmp_path)

    assert [score.recipient for score in result.accused] == ["a"]
    assert result.tensors_matched == result.tensors_marked
    assert result.accused[0].score == pytest.approx(plain.accused[0].score, rel=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_base_and_another_model_in_another_layout_are_read_too(case, tmp_path, layout):
    own = load_file(case.model / "model.safetensors")
    suspects = {Outcome.NOBODY: own, Outcome.NOT_COMPARABLE: plain_arrays(5)}
    for outcome, arrays in suspects.items():
        moved = {n: LAYOUTS[layout](w) if n in carriers(case) else w for n, w in arrays.items()}

        result = traced(case, moved, tmp_path)

        assert (result.outcome, result.accused) == (outcome, ())


def test_the_base_with_a_few_integers_clears_everybody(case, tmp_path):
    own = load_file(case.model / "model.safetensors")
    result = traced(
        case, own | {"conv.weight": own["conv.weight"], "head.weight": integers(own["head.weight"])}, tmp_path
    )

    assert result.outcome is Outcome.NOBODY


@pytest.mark.parametrize("kept", ["a tensor", "half of the blocks"])
def test_nobody_is_cleared_by_a_few_of_the_weights_compared(case, tmp_path, kept):
    """The base's own tensors would show a copy, but the others may be a copy's in another order."""
    rng = np.random.default_rng(0)
    own = load_file(case.model / "model.safetensors")
    kept_names = ("blocks.0.attn.proj.",) if kept == "a tensor" else ("blocks.0.", "blocks.1.", "conv.")
    suspect = {
        name: own[name] if name.startswith(kept_names) or name not in carriers(case) else shuffled(values, rng)
        for name, values in case.copies["a"].items()
    }

    result = traced(case, suspect, tmp_path)

    assert result.outcome is (Outcome.NOT_READABLE if kept == "a tensor" else Outcome.NOBODY)
    assert kept != "a tensor" or "in another order" in result.reason


def shuffled(values, rng):
    return np.ascontiguousarray(values[rng.permutation(len(values))][:, rng.permutation(values.shape[1])])


def rotated(case, arrays, rng):
    """The arrays without their names, each carrier in another orthogonal basis of its outputs."""
    found = {}
    for number, (name, values) in enumerate(arrays.items()):
        if name in carriers(case):
            basis = np.linalg.qr(rng.standard_normal((len(values), len(values))))[0]
            values = (basis @ values.reshape(len(values), -1)).reshape(values.shape).astype(np.float32)
        if values.size:
            found[f"z{number}"] = values
    return found


def test_the_base_in_front_of_a_copy_in_another_basis_clears_nobody(case, tmp_path):
    own = load_file(case.model / "model.safetensors")
    copy = rotated(case, case.copies["a"], np.random.default_rng(0))

    alone, behind = traced(case, copy, tmp_path), traced(case, own | copy, tmp_path)

    assert (alone.outcome, behind.outcome) == (Outcome.NOT_COMPARABLE, Outcome.NOT_READABLE)
    weights = f"{case.base.carrier_weights:,}"
    assert f"No copy shows in the {weights} weights" in behind.reason
    assert f"{weights} others have the shapes" in behind.reason


@pytest.mark.parametrize(("blocks", "cleared"), [(1, True), (2, True), (4, False)])
def test_layers_next_to_the_base_that_cannot_hold_most_of_a_copy_clear_it(case, tmp_path, blocks, cleared):
    own, others = load_file(case.model / "model.safetensors"), plain_arrays(5)
    head = {f"neck.{n}": w for n, w in others.items() if n.startswith(tuple(f"blocks.{i}." for i in range(blocks)))}

    result = traced(case, own | head, tmp_path)

    assert result.outcome is (Outcome.NOBODY if cleared else Outcome.NOT_READABLE)


def test_an_optimizers_state_is_no_copy(case, tmp_path):
    state = {n: torch.from_numpy(w) for n, w in load_file(case.model / "model.safetensors").items() if w.size > 1}
    moments = {i: {"exp_avg": torch.randn(w.shape)} for i, w in enumerate(state.values())}
    by_name = {name: {"exp_avg": torch.randn(w.shape)} for name, w in state.items()}
    others = {"optimizer": {"state": moments}, "sharded": {"state": by_name}, "another": moments}
    outcomes = {}
    for name, moved in others.items():
        torch.save({"model": state, name: moved}, tmp_path / "suspect.pth")
        outcomes[name] = trace(tmp_path / "suspect.pth", case.vault).outcome

    assert outcomes == {"optimizer": Outcome.NOBODY, "sharded": Outcome.NOBODY, "another": Outcome.NOT_READABLE}


def test_next_to_nothing_of_a_base_is_not_enough(case, tmp_path):
    name = "blocks.0.attn.proj.weight"
    own = load_file(case.model / "model.safetensors")[name]
    few = {name: np.where(np.arange(48 * 48).reshape(48, 48) < 20, own, 0).astype(np.float32)}

    result = traced(case, few, tmp_path)

    assert result.outcome is not Outcome.NOBODY


@pytest.mark.parametrize("stranger", ["other shapes", "the same shapes"])
def test_another_model_is_not_comparable(case, tmp_path, stranger):
    arrays = plain_arrays(5)
    if stranger == "other shapes":
        arrays = {f"x{i}.weight": np.ones((31 + i, 17), np.float32) for i in range(9)}

    result = traced(case, arrays, tmp_path)

    assert result.outcome is Outcome.NOT_COMPARABLE
    assert "nother model" in result.reason


SIDE = {
    "complex": torch.ones(3, 4, dtype=torch.complex64),
    "sparse": torch.eye(5).to_sparse(),
    "uint16": torch.ones(3, 4, dtype=torch.uint16),
    "F8_E8M0": torch.ones(3, 4, dtype=torch.uint8).view(torch.float8_e8m0fnu),
    "F4": torch.ones(3, 4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
    "empty": torch.ones(0, 4),
    "boolean": torch.ones(3, 4, dtype=torch.bool),
}


@pytest.mark.parametrize("side", SIDE)
@pytest.mark.parametrize("form", ["suspect.safetensors", "suspect.bin"])
def test_one_bad_side_tensor_stops_no_trace(case, tmp_path, side, form):
    state = {n: torch.from_numpy(w.copy()) for n, w in case.copies["a"].items()} | {"side.weight": SIDE[side]}
    path = tmp_path / form
    if form.endswith(".bin"):
        torch.save(state, path)
    elif side == "sparse":
        pytest.skip("safetensors has no sparse tensors")
    else:
        save_torch(state, path)

    assert [score.recipient for score in trace(path, case.vault).accused] == ["a"]


def test_an_empty_tensor_under_a_carriers_name_is_left_out_and_counted(case, tmp_path):
    name = carriers(case)[3]
    result = traced(
        case, case.copies["a"] | {name: np.zeros((0, *case.copies["a"][name].shape[1:]), np.float32)}, tmp_path
    )

    assert [score.recipient for score in result.accused] == ["a"]
    assert result.tensors_matched == result.tensors_marked - 1
    assert result.tensors_left_out >= 1


@pytest.mark.parametrize("prefix", ["", "module.", "model.of.mine."])
def test_a_suspect_without_elements_is_not_readable(case, tmp_path, prefix):
    result = traced(case, {prefix + name: np.zeros(0, np.float32) for name in case.copies["a"]}, tmp_path)

    assert result.outcome is Outcome.NOT_READABLE
    assert "no elements" in result.reason


def test_an_empty_tensor_makes_no_other_model_unreadable(case, tmp_path):
    other = {f"layer{i}.weight": np.full((70, 90), 0.01 * i, np.float32) for i in range(6)}

    assert traced(case, other | {"nothing": np.zeros((0, 7), np.float32)}, tmp_path).outcome is Outcome.NOT_COMPARABLE


@pytest.mark.parametrize("nest", ["weights", "a list", "two deep"])
def test_a_nest_next_to_a_tensor_is_read(case, tmp_path, nest):
    state = {n: torch.from_numpy(w.copy()) for n, w in case.copies["b"].items()}
    held = {"weights": {"weights": state}, "a list": {"parts": [state]}, "two deep": {"run": {"last": state}}}[nest]
    torch.save(held | {"step": torch.tensor(3)}, tmp_path / "suspect.pth")

    assert [score.recipient for score in trace(tmp_path / "suspect.pth", case.vault).accused] == ["b"]


def test_a_decoy_next_to_the_stolen_file_hides_nothing(case, tmp_path):
    folder = save_plain(tmp_path / "suspect", load_file(case.model / "model.safetensors"))
    torch.save({n: torch.from_numpy(w.copy()) for n, w in case.copies["b"].items()}, folder / "pytorch_model.bin")

    result = trace(folder, case.vault)

    assert [score.recipient for score in result.accused] == ["b"]
    assert set(result.files) == {"model.safetensors", "pytorch_model.bin"}
    confirmed, refused = (verify(folder, name, case.vault) for name in "ba")
    assert (confirmed.outcome, refused.outcome) == (Outcome.ACCUSED, Outcome.NOBODY)


def test_two_sets_of_weights_share_the_bound(case, tmp_path):
    alone = traced(case, case.copies["a"], tmp_path).accused[0].log10_false_accusation
    folder = save_plain(tmp_path / "suspect", case.copies["a"])
    save_file(plain_arrays(4), folder / "other.safetensors")

    (accused,) = trace(folder, case.vault).accused

    assert accused.log10_false_accusation == pytest.approx(alone + np.log10(2), abs=0.35)


def test_a_weight_file_in_another_form_clears_nobody(case, tmp_path):
    folder = save_plain(tmp_path / "suspect", load_file(case.model / "model.safetensors"))
    assert trace(folder, case.vault).outcome is Outcome.NOBODY
    (folder / "model.onnx").write_bytes(b"\0" * 1000)

    result = trace(folder, case.vault)

    assert result.outcome is Outcome.NOT_READABLE
    assert "model.onnx" in result.reason
    assert [file.name for file in result.files_not_read] == ["model.onnx"]


def test_bfloat16_is_read(case, tmp_path):
    state = {n: torch.from_numpy(w.copy()) for n, w in case.copies["a"].items()}
    save_torch(
        {n: w.to(torch.bfloat16) if w.is_floating_point() else w for n, w in state.items()}, tmp_path / "s.safetensors"
    )
    assert [score.recipient for score in trace(tmp_path / "s.safetensors", case.vault).accused] == ["a"]
