import json
import subprocess
import sys
import warnings
from dataclasses import FrozenInstanceError, replace
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hf_fingerprint import FingerprintConfig, register
from hf_fingerprint.carriers.amplitude import largest_eps
from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.errors import (
    BuildError,
    CarrierError,
    CheckpointError,
    CodeError,
    FingerprintError,
    FingerprintWarning,
)
from hf_fingerprint.registration import analyze_base, predicted_score
from hf_fingerprint.registration.output_comparison import OutputComparison
from hf_fingerprint.registration.prediction import code_length, drift_noise
from hf_fingerprint.vault import Base
from tests.helpers.small_models import (
    PLAIN_CARRIERS,
    PLAIN_SETTINGS,
    SETTINGS,
    new_vault,
    plain_arrays,
    save_plain,
    save_timm,
    save_vit,
)


pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Small models, made once."""
    root = tmp_path_factory.mktemp("models")
    return SimpleNamespace(
        plain=save_plain(root / "plain"),
        vit=save_timm(root / "vit", "test_vit"),
        transformers_vit=save_vit(root / "transformers_vit"),
    )


def examined(model, config=SETTINGS, **changes) -> Base:
    with open_checkpoint(model) as checkpoint:
        return analyze_base(checkpoint, replace(config, **changes))


def with_weights(model, folder, change):
    """The same model with other weights."""
    import shutil

    shutil.copytree(model, folder)
    arrays = load_file(folder / "model.safetensors")
    change(arrays)
    save_file(arrays, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("max_kl", [1e-3, 1e-6, 1e-8])
def test_the_mark_spends_the_budget_measured_and_no_more(models, max_kl):
    base = examined(models.vit, max_kl=max_kl)

    kl = base.calibration.kl
    assert 0 < kl <= max_kl
    assert kl >= max_kl / 2 or all(c.eps == pytest.approx(largest_eps(max_kl)) for c in base.carriers)
    assert base.calibration.inputs == "synthetic"
    assert base.calibration.images == 64
    assert base.calibration.agreement > 0.8  # 57 of 64 images at the largest budget


@pytest.mark.parametrize("architecture", ["test_resnet", "test_efficientnet"])
def test_convolutional_models_keep_the_budget_too(tmp_path, architecture):
    model = save_timm(tmp_path / "model", architecture)
    for max_kl in (1e-4, 1e-9):
        base = examined(model, max_kl=max_kl)
        assert 0 < base.calibration.kl <= max_kl
        assert base.calibration.kl >= max_kl / 2 or all(
            c.eps == pytest.approx(largest_eps(max_kl)) for c in base.carriers
        )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_models_keep_the_budget_that_rounding_spends_too(models, tmp_path, dtype):
    import shutil

    import torch
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    shutil.copytree(models.vit, tmp_path / "model")
    state = load_torch(models.vit / "model.safetensors")
    half = {name: tensor.to(getattr(torch, dtype)) for name, tensor in state.items()}
    save_torch(half, tmp_path / "model" / "model.safetensors", {"format": "pt"})

    base = examined(tmp_path / "model", max_kl=1e-8)

    assert 5e-9 <= base.calibration.kl <= 1e-8
    assert {base.tensors[carrier.name].dtype for carrier in base.carriers} == {
        {"bfloat16": "BF16", "float16": "F16"}[dtype]
    }


def test_a_budget_that_the_mark_never_keeps_is_not_recorded_as_kept(models, monkeypatch):
    monkeypatch.setattr(
        "hf_fingerprint.registration.amplitude_search.compare_outputs",
        lambda *arguments: OutputComparison(3e-6, (2e-6, 4e-6), 0.0, 32, 32, 32),
    )

    try:
        base = examined(models.vit, max_kl=1e-6)
    except FingerprintError:
        return  # refusing is as good
    assert base.calibration.kl <= base.calibration.max_kl


def test_a_larger_budget_makes_a_stronger_mark_of_the_same_shape(models):
    small, large = examined(models.vit, max_kl=1e-7), examined(models.vit, max_kl=1e-6)

    ratios = [b.eps / a.eps for a, b in zip(small.carriers, large.carriers, strict=True)]
    assert np.median(ratios) == pytest.approx(np.sqrt(10), rel=0.2)
    assert predicted_score(large) > 1.5 * predicted_score(small)


def test_amplitudes_are_eps_times_the_rows_root_mean_square(models):
    base, arrays = examined(models.plain, PLAIN_SETTINGS), load_file(models.plain / "model.safetensors")

    for carrier in base.carriers:
        rows = arrays[carrier.name].reshape(len(arrays[carrier.name]), -1).astype(np.float64)
        assert carrier.amplitude.dtype == np.float32
        assert np.allclose(carrier.amplitude, carrier.eps * np.sqrt((rows**2).mean(1)), rtol=1e-5)


def test_stem_and_classifier_are_never_carriers(models):
    names = {carrier.name for carrier in examined(models.vit).carriers}

    assert len(names) == 24
    assert not any("patch_embed" in name or "head" in name or "norm" in name or "pos" in name for name in names)
    kinds = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert {name.split(".", 2)[2].removesuffix(".weight") for name in names} == set(kinds)


def test_a_model_of_transformers_is_measured_and_marked_in_its_linear_layers(models):
    base = examined(models.transformers_vit, max_kl=1e-6)

    assert len(base.carriers) == 24
    assert all(name.startswith("vit.encoder.layer.") for name in (carrier.name for carrier in base.carriers))
    assert base.calibration.kl is not None, "the output was not measured"
    assert 0 < base.calibration.kl <= 1e-6
    assert base.calibration.inputs == "synthetic"


def test_no_linear_layer_of_a_transformers_swin_is_left_out(tmp_path):
    from transformers import SwinConfig, SwinForImageClassification

    sizes = {"image_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 24}
    config = SwinConfig(**sizes, depths=[1, 1, 2], num_heads=[2, 2, 4], num_labels=10)
    SwinForImageClassification(config).save_pretrained(tmp_path / "model")

    base = examined(tmp_path / "model")

    names = {carrier.name for carrier in base.carriers}
    wanted = {
        n
        for n, i in base.tensors.items()
        if n.endswith(".weight") and len(i.shape) == 2 and "encoder" in n and "norm" not in n
    }
    assert wanted <= names


def test_a_model_that_cannot_be_built_is_not_marked_unless_at_a_fixed_strength(models):
    with pytest.raises(BuildError, match=r"has no config\.json") as caught:
        examined(models.plain)

    assert "give the model's whole folder, or mark it at a fixed amplitude with --amplitude 0.003" in str(caught.value)
    assert str(caught.value).endswith("without measuring the effect on the output.")
    assert isinstance(caught.value.__cause__, BuildError)


def test_a_model_that_cannot_be_built_is_marked_by_its_names_and_says_so(models):
    base = examined(models.plain, PLAIN_SETTINGS)

    assert {carrier.name for carrier in base.carriers} == {n for n in plain_arrays() if n.endswith(PLAIN_CARRIERS)}
    assert (base.calibration.inputs, base.calibration.images) == ("none", 0)
    assert base.calibration.kl is base.calibration.agreement is None
    assert {carrier.eps for carrier in base.carriers} == {0.003}


def test_images_cannot_calibrate_what_cannot_be_built(models, tmp_path):
    with pytest.raises(CarrierError, match=r"can't be run, so images can't calibrate it"):
        examined(models.plain, PLAIN_SETTINGS, calibration=tmp_path)


def test_the_code_is_as_long_as_the_weights_allow():
    assert code_length(64 * 40, "x") == 64
    assert code_length(128 * 40 - 1, "x") == 64
    assert code_length(128 * 40, "x") == 128
    assert code_length(65536 * 40, "x") == code_length(10**9, "x") == 65536
    with pytest.raises(CarrierError, match="x has 2559 convolution and linear weights"):
        code_length(64 * 40 - 1, "x")


@pytest.mark.parametrize(("coalition", "family"), [(1, "fair_signs"), (2, "fair_signs"), (3, "tardos"), (5, "tardos")])
def test_the_code_depends_on_the_coalition_stated(models, coalition, family):
    base = examined(models.plain, PLAIN_SETTINGS, coalition=coalition)

    assert (base.family, base.coalition, base.length) == (family, coalition, 2048)
    assert base.codebook().family == family
    assert 0 <= base.certified <= base.expected_recipients == 4


def test_what_is_not_stated_is_the_default_for_a_new_base_and_the_record_for_a_known_one(models, tmp_path):
    vault = new_vault(tmp_path / "vault")

    base = register(models.plain, vault, FingerprintConfig(expected_recipients=4, amplitude=0.003))

    assert (base.calibration.max_kl, base.coalition, base.expected_recipients, base.alpha) == (1e-3, 20, 4, 1e-6)
    for config in (
        None,
        FingerprintConfig(),
        FingerprintConfig(expected_recipients=4),
        FingerprintConfig(coalition=20),
        FingerprintConfig(alpha=1e-6),
    ):
        assert register(models.plain, vault, config) == base
    for config in (
        FingerprintConfig(expected_recipients=5),
        FingerprintConfig(coalition=3),
        FingerprintConfig(max_kl=1e-4),
        FingerprintConfig(min_agreement=0.99),
        FingerprintConfig(alpha=0.01),
    ):
        with pytest.raises(CodeError, match="is registered with"):
            register(models.plain, vault, config)


def test_drift_hides_a_weak_mark_more_than_a_strong_one(models):
    base = examined(models.plain, PLAIN_SETTINGS)
    counts, eps = np.full(len(base.carriers), 100), np.array([carrier.eps for carrier in base.carriers])

    noise = drift_noise(counts, eps, 17 * 100, drift=0.003)

    assert noise == pytest.approx(1)  # a weight a position, with a drift as large as the mark
    assert drift_noise(counts, eps, 17 * 25, drift=0.003) == pytest.approx(0.5)
    assert drift_noise(np.zeros(0), np.zeros(0), 64) == np.inf


def test_a_mark_that_no_drift_leaves_is_warned_of(models):
    with pytest.warns(FingerprintWarning, match="No copy of .* can be named after a drift of 2 %"):
        examined(models.vit, amplitude=1e-6)


def test_a_mark_that_withstands_drift_is_not_warned_of(models):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FingerprintWarning)
        assert examined(models.vit, amplitude=0.05).certified > 0


def test_every_registration_draws_its_own_secret(models):
    one, two = examined(models.plain, PLAIN_SETTINGS), examined(models.plain, PLAIN_SETTINGS)

    assert one.secret != two.secret
    assert len(one.secret) == 32
    assert one.content_hash == two.content_hash
    assert one.base_id[:8] == two.base_id[:8] == one.content_hash[:8]
    assert one.base_id != two.base_id  # so that two issuers' registrations can stand in one vault


def test_a_registered_base_is_returned_from_its_record(models, tmp_path):
    vault = new_vault(tmp_path / "vault")

    first = register(models.plain, vault, PLAIN_SETTINGS)
    again = register(models.plain, vault)

    assert first == again
    assert first.secret == again.secret
    assert [np.array_equal(a.amplitude, b.amplitude) for a, b in zip(first.carriers, again.carriers, strict=True)]
    assert len(vault.bases()) == 1
    assert (first.source, first.revision) == (str(models.plain), None)


def test_the_same_weights_elsewhere_are_the_same_base(models, tmp_path):
    import shutil

    vault = new_vault(tmp_path / "vault")
    first = register(models.plain, vault, PLAIN_SETTINGS)
    shutil.copytree(models.plain, tmp_path / "elsewhere")

    assert register(tmp_path / "elsewhere", vault) == first
    assert register(models.plain / "model.safetensors", vault) == first


def test_steps_are_reported(models, tmp_path):
    steps = []

    register(models.vit, new_vault(tmp_path / "vault"), SETTINGS, lambda step, *_: steps.append(step))

    assert steps == [
        "hashing the weights",
        "comparing with the bases on record",
        "building the model",
        "measuring what the mark does to the output",
        "measuring the marked model on up to 64 other images",
        "computing the certified coalition",
    ]


def test_what_is_shown_of_a_base_holds_no_secret(models):
    base = examined(models.vit)

    shown = json.dumps(base.describe(), allow_nan=False) + repr(base) + repr(base.carriers)

    assert base.secret.hex() not in shown
    assert repr(base.secret) not in shown
    assert "amplitude" not in base.describe()
    assert base.describe()["carriers"] == 24
    assert base.describe()["kl"] == base.calibration.kl
    with pytest.raises(FrozenInstanceError):
        base.secret = b""


REGISTER = """
import sys, time
from pathlib import Path
from hf_fingerprint.registration import register
from hf_fingerprint.config import FingerprintConfig
from hf_fingerprint.vault import Vault
model, vault, here, go = sys.argv[1:]
Path(here).touch()
while not Path(go).exists():
    time.sleep(0.01)
base = register(model, Vault(vault), FingerprintConfig(coalition=3, expected_recipients=4, amplitude=0.003))
print(base.base_id, base.secret.hex())
"""


def test_two_processes_that_register_one_base_agree_on_it(models, tmp_path):
    vault = new_vault(tmp_path / "vault")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", REGISTER, models.plain, vault.folder, tmp_path / f"here{i}", tmp_path / "go"],
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    while not all((tmp_path / f"here{i}").exists() for i in range(2)):
        assert all(process.poll() is None for process in processes)
    (tmp_path / "go").touch()
    said = [process.communicate(timeout=60)[0] for process in processes]

    (base,) = vault.bases()
    assert said == [f"{base.base_id} {base.secret.hex()}\n"] * 2


@pytest.mark.parametrize("name", ["norm.weight", "head.bias", "patch_embed.proj.weight", "blocks.1.norm1.bias"])
def test_a_model_whose_output_is_not_a_number_is_refused_in_a_sentence(models, tmp_path, name):
    def spoil(arrays):
        arrays[name].reshape(-1)[0] = np.nan

    model = with_weights(models.vit, tmp_path / "model", spoil)

    with pytest.raises(FingerprintError) as caught:
        examined(model)
    assert len(str(caught.value).splitlines()) == 1


def test_a_model_with_dead_layers_is_marked_without_a_warning(models, tmp_path):
    def silence(arrays):
        arrays["blocks.2.mlp.fc2.weight"][:] = 0  # so that what comes before it moves nothing
        arrays["blocks.2.mlp.fc2.bias"][:] = 0

    model = with_weights(models.vit, tmp_path / "model", silence)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        base = examined(model, max_kl=1e-7)

    by_name = {carrier.name: carrier for carrier in base.carriers}
    assert 0.01 < by_name["blocks.2.mlp.fc1.weight"].eps <= 0.02
    assert 0 < base.calibration.kl <= 1e-7


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_kl": 0},
        {"max_kl": -1},
        {"max_kl": 2},
        {"max_kl": float("nan")},
        {"max_kl": float("inf")},
        {"min_agreement": 0},
        {"min_agreement": 1},
        {"min_agreement": float("nan")},
        {"alpha": 0},
        {"alpha": 0.5},
        {"alpha": float("nan")},
        {"coalition": 0},
        {"expected_recipients": 0},
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused_where_they_are_made(wrong):
    with pytest.raises(CodeError) as caught:
        FingerprintConfig(**wrong)
    assert len(str(caught.value).splitlines()) == 1


def test_a_model_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(CheckpointError):
        register(tmp_path / "nowhere", new_vault(tmp_path / "vault"), SETTINGS)


@pytest.mark.parametrize(
    ("coalition", "requested", "family"), [(2, None, "fair_signs"), (5, None, "tardos"), (5, "nuida", "nuida")]
)
def test_the_code_is_the_requested_one_or_that_of_the_coalition(models, coalition, requested, family):
    base = examined(models.plain, PLAIN_SETTINGS, coalition=coalition, code=requested)

    assert base.family == family
    assert base.certified >= 1


def test_another_code_for_a_known_base_is_refused(models, tmp_path):
    vault = new_vault(tmp_path / "vault")
    register(models.plain, vault, replace(PLAIN_SETTINGS, code="nuida"))

    with pytest.raises(CodeError, match="registered with code nuida, not tardos"):
        register(models.plain, vault, replace(PLAIN_SETTINGS, code="tardos"))
    with pytest.raises(CodeError, match="`code` must be one of tardos, nuida, fair_signs, got turbo"):
        FingerprintConfig(code="turbo")


@pytest.mark.parametrize(("dtype", "called"), [(np.float64, "F64"), (np.int8, "I8")])
def test_a_base_whose_weights_are_of_another_dtype_is_refused_for_that(tmp_path, dtype, called):
    path = tmp_path / "model" / "model.safetensors"
    path.parent.mkdir()
    save_file({name: array.astype(dtype) for name, array in plain_arrays(1).items()}, path)

    with pytest.raises(CarrierError, match=rf"has weights of dtype {called}.*convert the model"):
        register(path, new_vault(tmp_path / "vault"), PLAIN_SETTINGS)
