from dataclasses import fields
from inspect import signature
from typing import get_args

import pytest

from hf_fingerprint.cli.commands import inspect as inspect_model
from hf_fingerprint.config import FingerprintConfig, PublishConfig, help_texts
from hf_fingerprint.errors import CodeError, HubError


def test_a_field_has_one_help_text_for_python_and_the_command_line():
    parameters = signature(inspect_model).parameters.values()
    shown = {each.name: get_args(each.annotation)[1].help for each in parameters}

    assert help_texts(FingerprintConfig).items() <= shown.items()
    for config in (FingerprintConfig, PublishConfig):
        for field in fields(config):
            assert f"{field.name} (`" in config.__doc__
            assert field.metadata["help"] in config.__doc__


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_kl": 0.0},
        {"max_kl": float("nan")},
        {"amplitude": 1.5},
        {"coalition": 0},
        {"expected_recipients": 0},
        {"calibration_images": 0},
        {"alpha": 0.06},
        {"carriers": "wide"},
        {"code": "turbo"},
        {"output_kind": "logits"},
    ],
    ids=str,
)
def test_a_value_that_makes_no_sense_is_refused_by_the_name_of_its_field(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(CodeError, match=f"`{name}` must be .*got {value}"):
        FingerprintConfig(**wrong)


def test_a_gate_is_automatic_or_manual():
    with pytest.raises(HubError, match="`gated` must be one of auto, manual, got maybe"):
        PublishConfig(gated="maybe")
