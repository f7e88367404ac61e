"""Modules and state dicts as open checkpoints."""

from copy import deepcopy
from threading import Lock

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hf_fingerprint.checkpoints import content_hash, digest_tensors, open_checkpoint
from hf_fingerprint.checkpoints.memory import MemoryCheckpoint, copy_module, unwrap
from hf_fingerprint.checkpoints.renamed import RenamedCheckpoint
from hf_fingerprint.errors import CheckpointError, FingerprintError
from tests.helpers.checkpoint_files import refused


def freed() -> torch.Tensor:
    """A tensor whose memory a library took away, as those that offload weights do."""
    values = torch.ones(4, 4)
    values.untyped_storage().resize_(0)
    return values


UNREADABLE = {
    "on meta": (torch.empty(3, device="meta"), "no data"),
    "sparse": (torch.eye(3).to_sparse(), "sparse_coo"),
    "a lazy view": (torch.complex(torch.ones(3), torch.ones(3)).conj(), "a lazy view"),
    "of a subclass": (torch.nn.parameter.UninitializedParameter(), "subclass"),
    "a number": (3, "not a tensor"),
    "freed": (freed(), "no data"),
    "of an unknown dtype": (torch.zeros(3, dtype=torch.complex128), "complex128"),
}


class Tied(torch.nn.Module):
    """Two names of one weight, a buffer, a counter and an extra state."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(8, 8)
        self.second = torch.nn.Linear(8, 8, bias=False)
        self.second.weight = self.first.weight
        self.norm = torch.nn.BatchNorm1d(8)

    def get_extra_state(self):
        return {"steps": 3}

    def set_extra_state(self, state):
        pass

    def forward(self, x):
        return self.norm(self.second(self.first(x)))


def state_of_many_dtypes() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    plain = {
        name: torch.randn(6, 5).to(getattr(torch, name)) for name in ("float32", "float64", "float16", "bfloat16")
    }
    plain |= {name: torch.randn(6, 5).to(getattr(torch, name)) for name in ("float8_e4m3fn", "float8_e5m2")}
    plain |= {"count": torch.tensor(7), "mask": torch.ones(3, dtype=torch.bool), "none": torch.zeros(0, 4)}
    return plain


def test_a_state_dict_reads_as_its_file(tmp_path):
    state = state_of_many_dtypes()
    save_file(state, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path / "model.safetensors") as file, open_checkpoint(state) as live:
        assert live.source.name == "state dict (in memory)"
        assert {n: (i.dtype, i.shape) for n, i in live.tensors.items()} == {
            n: (i.dtype, i.shape) for n, i in file.tensors.items()
        }
        digests = digest_tensors(live)
        assert digests == digest_tensors(file)
        assert content_hash(live.tensors, digests) == content_hash(file.tensors, digests)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_module_is_read_where_it_is(dtype):
    module = Tied().to(dtype)
    with open_checkpoint(module) as live:
        info = live.tensors["first.weight"]
        whole, part = live.read(info), live.read(info, info.row_bytes, 3 * info.row_bytes)
        assert live.source.name == "Tied (in memory)"
        assert "_extra_state" not in live.tensors
        assert whole.ctypes.data == module.first.weight.data_ptr()
        assert np.array_equal(part, whole[info.row_bytes : 3 * info.row_bytes])
        assert not whole.flags.writeable
        assert live.tied == {"second.weight": "first.weight"}


@pytest.mark.parametrize("make", [torch.t, lambda w: w[::2], lambda w: w[:, 1:4], lambda w: w[0].expand(4, 5)])
def test_views_are_read_in_the_order_of_their_elements(make):
    view = make(torch.arange(30.0).reshape(6, 5))
    with open_checkpoint({"view": view}) as live:
        info = live.tensors["view"]
        values = live.read(info).view("<f4").reshape(info.shape)
        assert np.array_equal(values, view.numpy())
        assert np.array_equal(live.read(info, 8, 24).view("<f4"), view.reshape(-1).numpy()[2:6])
        out = np.zeros(100, np.uint8)
        assert np.shares_memory(live.read(info, 4, 12, out), out)


def test_the_state_changes_with_the_weights():
    module = Tied()
    with open_checkpoint(module) as live:
        before = live.state()
        assert live.state() == before
        with torch.no_grad():
            module.first.weight.mul_(2)
        assert live.state() != before


@pytest.mark.parametrize(
    "change", [torch.nn.Module.half, lambda module: module.load_state_dict(Tied().state_dict(), assign=True)]
)
def test_the_state_changes_with_weights_that_are_replaced(change):
    module = Tied()
    with open_checkpoint(module) as live:
        before = live.state()
        change(module)
        assert live.state() != before


def test_weights_made_in_inference_mode_are_read():
    with torch.inference_mode():
        module = Tied()
    with open_checkpoint(module) as live:
        assert live.state()
        assert len(digest_tensors(live)) == len(live.tensors)


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_can_not_be_read_is_refused_in_a_base_and_left_out_of_a_suspect(kind):
    value, reason = UNREADABLE[kind]
    state = {"good": torch.ones(2, 2), "bad": value}

    assert "bad" in (text := refused(open_checkpoint, state))
    assert reason in text
    with open_checkpoint(state, suspect=True) as suspect:
        assert suspect.tensors.keys() == {"good"}
        assert reason in suspect.left_out["bad"]


def test_names_that_are_no_text_are_unreadable():
    assert "invalid name" in refused(open_checkpoint, {4: torch.ones(2)})


@pytest.mark.parametrize("model", [{}, 3, [torch.ones(2)]])
def test_what_is_no_model_is_refused(model):
    refused(open_checkpoint, model)


def test_adapters_and_wrappers_with_other_weights_are_refused():
    module, partitioned = Tied(), Tied()
    module.first.peft_config = {}
    partitioned.first.weight.ds_id = 1

    assert "adapter" in refused(open_checkpoint, {"layer.lora_A.weight": torch.ones(2, 2)})
    assert "ZeRO-3" in refused(open_checkpoint, partitioned)
    with pytest.raises(FingerprintError, match="PEFT"):
        open_checkpoint(module)


def test_tensors_that_share_a_part_of_their_memory_are_refused_in_a_base():
    values = torch.randn(10)
    state = {"a": values[:6], "b": values[4:]}

    assert "share a part" in refused(open_checkpoint, state)
    assert open_checkpoint(state, suspect=True).tensors.keys() == {"a", "b"}


def test_wrappers_are_removed():
    module = Tied()
    wrapped = torch.compile(torch.nn.DataParallel(module))

    assert unwrap(wrapped) is module
    assert open_checkpoint(wrapped).source.name == "Tied (in memory)"


def test_a_copy_runs_its_own_weights_whatever_accelerate_put_in_its_way():
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # of an earlier test
    module, x = Tied().eval(), torch.randn(2, 8)
    Accelerator(mixed_precision="bf16", cpu=True).prepare(module)
    copied = copy_module(module)
    with torch.no_grad():
        copied.norm.bias += 5

    AcceleratorState._reset_state()
    assert "_original_forward" in module.__dict__
    assert torch.allclose(copied(x), Tied.forward(module, x) + 5, atol=1e-5)


def test_a_module_that_can_not_be_copied_is_refused():
    module = Tied()
    module.lock = Lock()

    assert "state dict" in refused(copy_module, module)


def test_a_module_whose_copy_is_itself_is_refused_and_stays_as_it_was():
    class Single(Tied):
        def __deepcopy__(self, memo):
            return self

    assert "state dict" in refused(copy_module, Single())


def test_a_renamed_checkpoint_has_the_same_bytes_and_ties():
    module = Tied()
    names = {"one": "first.weight", "two": "second.weight", "bias": "first.bias"}
    with RenamedCheckpoint(open_checkpoint(module), names) as renamed, open_checkpoint(deepcopy(module)) as live:
        assert renamed.tensors.keys() == names.keys()
        assert renamed.tied == {"two": "one"}
        assert isinstance(renamed.stored, MemoryCheckpoint)
        for name, theirs in names.items():
            assert np.array_equal(renamed.read(renamed.tensors[name]), live.read(live.tensors[theirs]))
        with renamed.reopen() as again:
            assert again.tensors == renamed.tensors


class Halves(torch.Tensor):
    """A tensor of a library's own class, which holds codes and a scale."""

    @staticmethod
    def __new__(cls, codes, scale):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes, scale):
        self.codes, self.scale, self.calls = codes, scale, 0

    def dequantize(self):
        if self.scale is None:
            raise RuntimeError("no scale")
        return self.codes.half() * self.scale

    def detach(self):
        return self

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError


class Marked(torch.nn.Parameter):
    """A parameter of a library's own class, with elements of its own."""


def test_quantized_tensors_of_a_suspect_are_dequantized_by_their_class():
    codes = torch.arange(12, dtype=torch.int8).reshape(3, 4)
    state = {"a": Halves(codes, torch.tensor(0.5)), "b": Marked(torch.ones(2, 3)), "c": torch.ones(2)}

    with open_checkpoint(state, suspect=True) as live:
        assert {name: (info.dtype, info.shape) for name, info in live.tensors.items()} == {
            "a": ("F32", (3, 4)), "b": ("F32", (2, 3)), "c": ("F32", (2,))
        }  # fmt: skip
        np.testing.assert_array_equal(live.read(live.tensors["a"]).view(np.float32), np.arange(12) / 2)
        np.testing.assert_array_equal(live.read(live.tensors["a"], 16, 24).view(np.float32), [2, 2.5])
        assert live.read(live.tensors["b"]).view(np.float32).tolist() == [1] * 6
        assert live.state() == live.state()


def test_a_quantized_tensor_that_its_class_cannot_dequantize_is_an_error():
    live = open_checkpoint({"a": Halves(torch.ones(2, 2), None)}, suspect=True)

    with pytest.raises(CheckpointError, match="Halves can't be dequantized"):
        live.read(live.tensors["a"])


def test_a_base_has_no_tensors_of_other_classes():
    for values in (Halves(torch.ones(2, 2), torch.tensor(1.0)), Marked(torch.ones(2, 2))):
        with pytest.raises(CheckpointError, match="a tensor subclass"):
            open_checkpoint({"a": values})
