"""Which tensors of a pickle are read: all of a suspect's, and those of a base that unambiguously are the model's."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.checkpoints.formats.pytorch import nesting
from tests.helpers.checkpoint_files import refused


A, B, C = torch.arange(4.0), torch.arange(4.0) + 10, torch.arange(4.0) + 20


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def suspect(path: Path) -> dict[str, list[float]]:
    """The tensors of a suspect by name."""
    with open_checkpoint(path, suspect=True) as checkpoint:
        return {n: checkpoint.read(info).view("<f4").tolist() for n, info in checkpoint.tensors.items()}


def named(**tensors: torch.Tensor) -> dict[str, list[float]]:
    return {name: tensor.tolist() for name, tensor in tensors.items()}


SUSPECTS: list[tuple[Any, dict[str, torch.Tensor]]] = [
    ({"a": A}, {"a": A}),
    ({"decoy": C, "nest": {"a": A, "b": B}}, {"decoy": C, "nest.a": A, "nest.b": B}),
    ({"decoy": C, "state_dict": {"a": A}}, {"a": A, "decoy": C}),
    ({"state_dict": {"a": A}, "state_dict_ema": {"a": B}}, {"a": A, "state_dict_ema.a": B}),
    ({"model": {"a": A}, "ema": {"a": B}, "epoch": 3}, {"a": A, "ema.a": B}),
    ({"model": {"state_dict": {"a": A}}}, {"a": A}),
    ({"checkpoint": {"model": {"a": A}}}, {"checkpoint.model.a": A}),
    ({"state_dict": {"a": A, "more": {"b": B}}}, {"a": A, "more.b": B}),
    ({"a": C, "state_dict": {"a": A}}, {"a": A, "a#2": C}),
    ({"n.a": A, "n": {"a": B}}, {"n.a": A, "n.a#2": B}),
    ([A, {"b": [B, (C,)]}], {"0": A, "1.b.0": B, "1.b.1.0": C}),
    ({"layers": [{"w": A}, {"w": B}]}, {"layers.0.w": A, "layers.1.w": B}),
    ({0: A, "0": B, (1, 2): C}, {"0": A, "0#2": B, "<tuple>": C}),
    ({"optimizer": {"state": {0: {"exp_avg": B}}}, "state_dict": {"a": A}}, {"a": A, "optimizer.state.0.exp_avg": B}),
    (A, {"tensor": A}),
]


@pytest.mark.parametrize(("content", "expected"), SUSPECTS, ids=range(len(SUSPECTS)))
def test_every_tensor_of_a_suspect_is_found_wherever_it_is_nested(tmp_path, content, expected):
    assert suspect(saved(tmp_path / "x.pth", content)) == {n: t.tolist() for n, t in expected.items()}


REFUSED: list[tuple[Any, str]] = [
    ({"decoy": C, "nest": {"a": A}}, "nest next to those in its top level"),
    ({"nest": {"a": A}, "epoch": 3}, "nest, and none in its top level"),
    ({"decoy": C, "state_dict": {"a": A}}, "decoy next to those in state_dict"),
    ({"teacher": {"a": B}, "state_dict": {"a": A}}, "teacher next to those in state_dict"),
    ({"random_features": {"a": B}, "state_dict": {"a": A}}, "random_features next to those in state_dict"),
    ({"state_dict": {"a": A, "more": {"b": B}}}, "state_dict.more next to those in state_dict"),
    ({"model": {"state_dict": {"a": A}}}, "model.state_dict, and none in model"),
    ({"a": A, "list": [B]}, "list next to those in its top level"),
    ({f"n{i}": {"a": A} for i in range(9)}, "n0, n1, n2 and 6 more"),
]


@pytest.mark.parametrize(("content", "expected"), REFUSED, ids=[expected for _, expected in REFUSED])
def test_a_base_with_tensors_in_two_places_is_refused_by_file_and_keys(tmp_path, content, expected):
    path = saved(tmp_path / "x.pth", content)

    text = refused(open_checkpoint, path)

    assert f"{path} holds tensors in {expected}" in text
    assert "state dict alone" in text


@pytest.mark.parametrize(
    "others",
    [
        {"optimizer": {"state": {0: {"exp_avg": B}}}},
        {"optimizer_states": [{"state": {0: {"exp_avg": B}}}], "lr_schedulers": [{"x": B}]},
        {"optimizer_state_dict": {"state": {0: {"exp_avg": B}}}, "lr_scheduler": {"x": B}, "callbacks": {"x": B}},
        {"amp_scaler": {"scale": A}, "torch_rng_state": torch.zeros(5056, dtype=torch.uint8)},
        {"best_acc1": torch.tensor(0.9), "epoch": 3},
        {"state_dict_ema": {"a": B}},
    ],
    ids=range(6),
)
def test_training_state_next_to_a_bases_state_dict_is_ignored(tmp_path, others):
    path = saved(tmp_path / "x.pth", {"state_dict": {"a": A}, **others})

    with open_checkpoint(path) as base:
        assert list(base.tensors) == ["a"]


def test_tensors_nested_too_deep_are_left_out_with_a_reason(tmp_path):
    deep: Any = A
    for _ in range(nesting.MAX_DEPTH):
        deep = {"d": deep}
    path = saved(tmp_path / "x.pth", {"a": A, "deep": deep, "empty": {"d": {}}})

    with open_checkpoint(path, suspect=True) as checkpoint:
        assert list(checkpoint.tensors) == ["a"]
        assert checkpoint.left_out == {"deep" + ".d" * (nesting.MAX_DEPTH - 1): "nested deeper than 8"}


def test_no_more_tensors_than_the_limit_are_read_and_the_rest_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(nesting, "MAX_NESTED_TENSORS", 5)
    path = saved(tmp_path / "x.pth", {"state_dict": {str(i): A for i in range(4)}, "decoys": [B] * 10})

    with open_checkpoint(path, suspect=True) as checkpoint:
        assert list(checkpoint.tensors) == ["0", "1", "2", "3", "decoys.0"]
        assert checkpoint.left_out == {"...": "9 tensors beyond the limit of 5"}


def test_a_container_that_holds_itself_is_visited_once(tmp_path):
    ring: dict[str, Any] = {"a": A}
    ring["ring"] = [ring] * 1000
    path = saved(tmp_path / "x.pth", ring)

    assert suspect(path) == named(a=A)
    assert "ring" in refused(open_checkpoint, path)


def test_keys_of_equal_text_each_get_a_name():
    taken: dict[str, int] = {}

    assert [nesting.unique_name("a", taken) for _ in range(3)] == ["a", "a#2", "a#3"]
    assert nesting.unique_name("a#2", taken) == "a#2#2"
    assert len({nesting.unique_name("b", taken) for _ in range(100_000)}) == 100_000


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, {"state_dict": {}}, "hello", [1, [2]]], ids=repr)
def test_a_suspect_without_any_tensor_is_refused_by_name(tmp_path, content):
    path = saved(tmp_path / "x.bin", content)

    assert str(path) in refused(lambda: open_checkpoint(path, suspect=True))


def test_modules_nested_in_each_other_again_and_again_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(nesting, "MAX_NESTED_PARTS", 10_000)
    tower = torch.nn.Linear(2, 2)
    for _ in range(40):
        tower = torch.nn.ModuleList([tower, tower])
    path = saved(tmp_path / "x.pth", tower)

    for suspect in (True, False):
        assert "more than 10,000 nested values" in refused(lambda s=suspect: open_checkpoint(path, suspect=s))


class Odd(torch.nn.Module):
    """A module that keeps tensors where its state dict has none."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(2, 2, bias=False)
        self.kept = A
        self.listed = [B, torch.nn.Linear(2, 1, bias=False)]
        self.again = {"same": self.inner.weight, "module": self.inner}


def test_a_suspects_module_gives_what_it_keeps_besides_its_state_dict(tmp_path):
    odd = Odd()

    found = suspect(saved(tmp_path / "x.pt", {"model": odd}))

    assert found == {
        "inner.weight": odd.inner.weight.flatten().tolist(),
        "kept": A.tolist(),
        "listed.0": B.tolist(),
        "listed.1.weight": odd.listed[1].weight.flatten().tolist(),
    }
