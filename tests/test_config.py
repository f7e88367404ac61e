import json
from dataclasses import fields, replace
from inspect import signature
from pathlib import Path
from typing import Any, get_args

import pytest

from hf_fingerprint.cli.commands import inspect as inspect_model
from hf_fingerprint.cli.issue_commands import issue
from hf_fingerprint.cli.main import main
from hf_fingerprint.cli.options import load_config
from hf_fingerprint.config import FingerprintConfig, PublishConfig, help_texts
from hf_fingerprint.errors import CodeError, FingerprintError, HubError
from tests.helpers.loopback_hub import LoopbackHub
from tests.helpers.small_models import save_plain


def options_of(command: Any) -> dict[str, str]:
    """The help text of each option of a command, by the option's name."""
    settings = [get_args(each.annotation)[1] for each in signature(command).parameters.values()]
    return {str(each.default): each.help for each in settings}


def test_a_field_has_one_name_and_help_text_for_python_and_the_command_line():
    for config, command in ((FingerprintConfig, inspect_model), (FingerprintConfig, issue), (PublishConfig, issue)):
        shown = options_of(command)
        for name, text in help_texts(config).items():
            option = {"private": "--public"}.get(name, f"--{name.replace('_', '-')}")
            assert shown[option] == text or name == "private"
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
        {"min_agreement": 1.0},
        {"min_agreement": float("nan")},
        {"coalition": 0},
        {"coalition": 10**30},
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


CONFIGS = [
    FingerprintConfig(max_kl=1e-3, coalition=3, alpha=1e-9, carriers="compact", code="tardos", calibration_images=5),
    FingerprintConfig(min_agreement=0.99),
    FingerprintConfig(),
    PublishConfig(private=False, gated="auto", disclose=True, base_model="org/x"),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_saved_configuration_is_the_same_when_it_is_loaded(config, tmp_path):
    saved = config.save_pretrained(tmp_path / "new" / "folder")

    assert saved.parent == tmp_path / "new" / "folder" and [saved] == list(saved.parent.iterdir())
    assert type(config).from_pretrained(saved.parent) == config
    assert type(config).from_pretrained(saved) == config
    assert type(config).from_pretrained(tmp_path, subfolder="new/folder") == config
    assert type(config).from_dict(config.to_dict()) == config
    assert json.loads(saved.read_text()) == config.to_dict()
    replace(config).save_pretrained(saved.parent)  # over the earlier one
    assert type(config).from_pretrained(saved.parent) == config


def test_saving_does_not_write_through_a_link(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "tmp-fingerprint_config.json").symlink_to(tmp_path / "precious")

    saved = FingerprintConfig(coalition=3).save_pretrained(tmp_path / "config")

    assert (tmp_path / "precious").read_text() == "mine"
    assert [saved] == list(saved.parent.iterdir())


def test_a_path_of_this_machine_is_not_saved(tmp_path):
    config = FingerprintConfig(calibration="/home/alice/photos", coalition=3)

    assert isinstance(config.calibration, Path)
    assert "alice" not in config.save_pretrained(tmp_path).read_text()
    assert FingerprintConfig.from_pretrained(tmp_path) == FingerprintConfig(coalition=3)
    with pytest.raises(FingerprintError, match="no field calibration, since it is a path of this machine"):
        FingerprintConfig.from_dict({"calibration": "/home/alice/photos"})


def test_a_configuration_on_the_hub_is_loaded_by_revision_token_and_subfolder(tmp_path, monkeypatch):
    paths = [FingerprintConfig(coalition=count).save_pretrained(tmp_path / str(count)) for count in (3, 5)]
    old, new = (path.read_bytes() for path in paths)
    with LoopbackHub() as hub:
        hub.point_client(monkeypatch, tmp_path / "cache")
        hub.account("alice", orgs={"org"}, token="hf_alice")
        repo = hub.add("org/settings", {"fingerprint_config.json": old, "README.md": b"# x"}, private=True)
        first = repo.refs["main"]
        repo.commit({"vision/fingerprint_config.json": new})

        def load(**options: Any) -> FingerprintConfig:
            return FingerprintConfig.from_pretrained("org/settings", token="hf_alice", **options)

        assert load(revision=first).coalition == 3
        assert load(subfolder="vision", cache_dir=tmp_path / "other").coalition == 5
        assert not any("README.md" in each for each in hub.downloads()) and list((tmp_path / "other").iterdir())
        with pytest.raises(FingerprintError, match=r"org/settings has no fingerprint_config\.json"):
            load()
        with pytest.raises(FingerprintError, match="org/settings"):
            FingerprintConfig.from_pretrained("org/settings", token=False)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        ("[1]", "is not a configuration"),
        ('{"coalition": 3, "coalition": 4}', "is not JSON"),
        ('{"max_kl": NaN}', "is not JSON"),
        ('{"max_kl": "1e-3"}', "`max_kl` must be a number, got 1e-3"),
        ('{"coalition": true}', "`coalition` must be an integer, got True"),
        ('{"coalition": 2.5}', "`coalition` must be an integer, got 2.5"),
        ('{"alpha": 1' + "0" * 400 + "}", "alpha"),
        ('{"carriers": ["spread"]}', "`carriers` must be text"),
        ('{"colalition": 3}', "no field colalition: did you mean coalition?"),
        ('{"\\u001b[31m": 3}', "no field \\x1b[31m: choose from max_kl"),
        ("[" * 2_000, "is not JSON"),
        (" " * 65_000, "has 0.1 MB"),
    ],
    ids=range(13),
)
def test_a_file_that_is_no_configuration_is_refused_in_one_sentence(tmp_path, content, said):
    path = tmp_path / FingerprintConfig.FILE
    path.write_text(content)

    for name in (path, tmp_path):
        with pytest.raises(FingerprintError) as refused:
            FingerprintConfig.from_pretrained(name)
        assert said in str(refused.value) and str(path) in str(refused.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FingerprintError, match=r"has no fingerprint_config\.json"):
        FingerprintConfig.from_pretrained(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(FingerprintError, match="can't be written"):
        FingerprintConfig().save_pretrained(tmp_path / "file")


def test_options_that_are_given_win_over_the_saved_ones(tmp_path):
    FingerprintConfig(coalition=3, alpha=1e-9).save_pretrained(tmp_path)
    PublishConfig(gated="auto", disclose=True).save_pretrained(tmp_path)

    merged = load_config(FingerprintConfig, str(tmp_path), coalition=5, alpha=None)
    assert merged == FingerprintConfig(coalition=5, alpha=1e-9)
    assert load_config(FingerprintConfig, None, coalition=5, alpha=None) == FingerprintConfig(coalition=5)
    assert load_config(PublishConfig, str(tmp_path), gated="manual") == PublishConfig(gated="manual", disclose=True)


def test_commands_take_a_saved_configuration(tmp_path, capsys):
    saved = FingerprintConfig(amplitude=0.003, coalition=3, expected_recipients=10).save_pretrained(tmp_path / "saved")
    model = save_plain(tmp_path / "model")

    assert main(["inspect", str(model), "--config", str(saved), "--coalition", "2", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["coalition_designed"], shown["expected_recipients"], shown["fixed_amplitude"]) == (2, 10, 0.003)
    assert main(["inspect", str(model), "--config", str(model)]) == 2
    assert "has no fingerprint_config.json" in capsys.readouterr().err
