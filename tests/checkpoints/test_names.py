import pytest
from checkpoint_files import UNHURRIED
from hypothesis import given
from hypothesis import strategies as st

from hf_fingerprint.checkpoints.names import normalise


@pytest.mark.parametrize(
    ("decorated", "wrapper"),
    [
        ("blocks.0.attn.qkv.weight", "nothing"),
        ("module.blocks.0.attn.qkv.weight", "DDP"),
        ("_orig_mod.blocks.0.attn.qkv.weight", "torch.compile"),
        ("timm_model.blocks.0.attn.qkv.weight", "transformers' TimmWrapper"),
        ("base_model.model.blocks.0.attn.qkv.weight", "PEFT"),
        ("base_model.model.timm_model.blocks.0.attn.qkv.weight", "PEFT around TimmWrapper"),
        ("module._orig_mod.timm_model.blocks.0.attn.qkv.weight", "DDP around compile around TimmWrapper"),
        ("_orig_mod.module.blocks.0.attn.qkv.weight", "compile around DDP"),
        ("ema.module.blocks.0.attn.qkv.weight", "EMA of DDP"),
        ("model_ema.blocks.0.attn.qkv.weight", "timm's EMA"),
        ("blocks.0._orig_mod.attn.qkv.weight", "compile of each block"),
        ("blocks.0._orig_mod.attn._orig_mod.qkv.weight", "compile of a block and of a layer in it"),
        ("module.blocks.0._orig_mod.attn.qkv.weight", "DDP around compiled blocks"),
    ],
)
def test_wrappers_leave_no_trace_in_a_name(decorated, wrapper):
    assert normalise(decorated) == "blocks.0.attn.qkv.weight", wrapper


@pytest.mark.parametrize(
    "name",
    ["modules.0.weight", "modeling.weight", "backbones.0.weight", "head.module.weight", "stages.model"],
)
def test_what_only_looks_like_a_wrapper_stays(name):
    assert normalise(name) == name


def test_names_that_differ_in_more_than_wrappers_stay_apart():
    names = ["blocks.0.weight", "blocks.1.weight", "head.weight", "head.bias", "module.head.gamma"]

    assert len({normalise(name) for name in names}) == len(names)


@UNHURRIED
@given(
    st.lists(st.sampled_from(["module", "_orig_mod", "timm_model", "model", "blocks", "0", "attn"]), max_size=6),
    st.sampled_from(["weight", "bias", "model.weight", "module.weight"]),
)
def test_normalising_twice_is_normalising_once(parts, last):
    name = ".".join([*parts, last])

    assert normalise(normalise(name)) == normalise(name)
