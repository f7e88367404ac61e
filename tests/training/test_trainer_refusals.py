"""What the callback can't train is refused before the first step, with one sentence that says what to do."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments, ViTForImageClassification

from hf_fingerprint.errors import CarrierError, FingerprintError, VaultError
from hf_fingerprint.training import DeepMarks, Fingerprint, FingerprintCallback, FingerprintTrainer
from tests.helpers.small_models import PLAIN_SETTINGS, SETTINGS, new_vault
from tests.helpers.training_runs import QUIET, RECIPIENT, images, register_base, save_cnn, save_transformer


pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A registered ViT."""
    root = tmp_path_factory.mktemp("refusals")
    model, vault = save_transformer(root / "model"), new_vault(root / "vault")
    register_base(model, vault)
    return SimpleNamespace(root=root, model=model, vault=vault, secret=vault.bases()[0].secret)


def callback(base, **options):
    return FingerprintCallback(Fingerprint(base.model, RECIPIENT, base.vault, SETTINGS), **options)


def refusal(base, kind, model=None, call=None, **arguments):
    """The sentence by which a training is refused; the vault must be free for the next one."""
    call = call or callback(base)
    model = model or AutoModelForImageClassification.from_pretrained(base.model)
    settings = TrainingArguments(**{"output_dir": str(base.root / "out"), "max_steps": 1} | QUIET | arguments)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    try:
        with pytest.raises(kind) as caught:
            Trainer(model=model, args=settings, train_dataset=images(), callbacks=[call]).train()
    finally:
        if call.fingerprint._lock is not None:
            call.fingerprint._lock.release()
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert base.secret.hex() not in sentence
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    return sentence


@pytest.mark.parametrize("strength", [0, 0.0, -1, float("nan"), float("inf"), float("-inf")])
def test_a_strength_that_is_not_a_finite_number_above_0_is_refused_at_once(base, strength):
    with pytest.raises(FingerprintError, match=rf"^A strength of {strength} can't be trained with: choose .*\.$"):
        callback(base, strength=strength)
    with pytest.raises(FingerprintError, match=r"^A strength of "):
        FingerprintTrainer(fingerprint=callback(base).fingerprint, strength=strength)


def test_a_model_of_which_only_the_head_trains_is_refused_and_nothing_recorded(base):
    model = AutoModelForImageClassification.from_pretrained(base.model)
    model.vit.requires_grad_(False)
    copies = base.vault.copies()

    assert refusal(base, FingerprintError, model) == (
        f"None of the 12 carriers of base {base.vault.bases()[0].base_id} trains: train without a fingerprint, then "
        f"issue a copy of the trained model."
    )
    assert base.vault.copies() == copies


def test_a_frozen_layer_of_the_papers_scheme_is_refused():
    model = torch.nn.Conv2d(3, 4, 3).requires_grad_(False)

    with pytest.raises(FingerprintError, match=r"^weight is a frozen carrier: unfreeze it, or choose other layers\.$"):
        DeepMarks(bytes(32), 7).fingerprint(0).bind(model)


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], "all-linear"])
def test_a_model_wrapped_by_peft_is_refused(base, targets):
    from peft import LoraConfig, get_peft_model

    model = AutoModelForImageClassification.from_pretrained(base.model)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=targets, exclude_modules=["classifier"]))

    assert refusal(base, FingerprintError, wrapped) == (
        "The model is wrapped by PEFT, which freezes its weights: merge the adapter first."
    )


def test_a_model_wrapped_by_fsdp1_is_refused(base):
    class FullyShardedDataParallel(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self._fsdp_wrapped_module = module

    model = AutoModelForImageClassification.from_pretrained(base.model)
    model.vit.layers[0] = FullyShardedDataParallel(model.vit.layers[0])

    assert refusal(base, FingerprintError, model) == (
        "The model is wrapped by FSDP1, which flattens weights: use FSDP2 (fsdp_version: 2)."
    )


def test_a_model_partitioned_by_zero_3_is_refused_and_nothing_recorded(base):
    model = AutoModelForImageClassification.from_pretrained(base.model)
    for parameter in model.parameters():
        parameter.ds_id = 0
    copies = base.vault.copies()
    call = callback(base, embed=False)

    sentence = refusal(base, FingerprintError, model, call)

    assert sentence.startswith("The model is partitioned by ZeRO-3")
    assert "FingerprintTrainerMixin" in sentence
    assert base.vault.copies() == copies


@pytest.mark.parametrize("half", ["arguments", "weights"])
def test_fp16_under_deepspeed_is_refused(base, half):
    model = AutoModelForImageClassification.from_pretrained(base.model)
    arguments = SimpleNamespace(fp16=half == "arguments", output_dir=str(base.root / "out"), deepspeed={"any": 1})
    if half == "weights":
        model.half()

    with pytest.raises(
        FingerprintError, match=r"^fp16 under DeepSpeed scales gradients out of reach: train in bf16\.$"
    ):
        callback(base, embed=False).on_train_begin(arguments, SimpleNamespace(global_step=0), None, model=model)


def test_putting_the_mark_in_under_deepspeed_is_refused(base):
    class DeepSpeedOptimizerWrapper:
        pass

    model = AutoModelForImageClassification.from_pretrained(base.model)
    arguments = SimpleNamespace(fp16=False, output_dir=str(base.root / "out"), deepspeed=None)

    with pytest.raises(
        FingerprintError, match=r"^DeepSpeed keeps its own copy of the weights, .*choose embed=False, .*\.$"
    ):
        callback(base).on_train_begin(
            arguments, SimpleNamespace(global_step=0), None, model=model, optimizer=DeepSpeedOptimizerWrapper()
        )


@pytest.mark.parametrize("inside", ["", "nested/"])
def test_a_vault_inside_the_output_folder_is_refused(base, tmp_path, inside):
    folder = tmp_path / "out" / f"{inside}vault"
    call = FingerprintCallback(Fingerprint(base.model, RECIPIENT, new_vault(folder), SETTINGS))

    sentence = refusal(base, VaultError, call=call, output_dir=str(tmp_path / "out"))

    assert sentence == f"{folder} is inside the output folder {tmp_path / 'out'}: move the vault out of it."


def test_a_model_that_was_initialized_again_is_refused(base):
    config = AutoModelForImageClassification.from_pretrained(base.model).config
    call = callback(base)
    settings = TrainingArguments(output_dir=str(base.root / "out"), max_steps=1, **QUIET)
    trainer = Trainer(
        model_init=lambda: ViTForImageClassification(config), args=settings, train_dataset=images(), callbacks=[call]
    )

    with pytest.raises(FingerprintError, match=r"^The model's weights are unrelated to its base .*reinitialized.*\.$"):
        trainer.train()
    call.fingerprint._lock.release()


def test_another_architecture_is_refused_with_a_tensor_it_lacks(base, tmp_path):
    other = AutoModelForImageClassification.from_pretrained(save_cnn(tmp_path / "cnn"))

    sentence = refusal(base, FingerprintError, other)

    assert sentence.startswith("The model lacks 12 of the 12 carriers of base ")
    assert sentence.endswith(f": give the model of {base.model}.")


def test_a_carrier_of_another_shape_is_refused(base):
    model = AutoModelForImageClassification.from_pretrained(base.model)
    layer = model.vit.layers[1].mlp
    layer.fc1 = torch.nn.Linear(45, 90)

    assert "carriers of base" in refusal(base, FingerprintError, model)


def test_a_base_without_carriers_is_refused(base, tmp_path):
    from safetensors.torch import save_file

    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"norm.weight": torch.ones(8)}, folder / "model.safetensors")
    call = FingerprintCallback(Fingerprint(folder, RECIPIENT, base.vault, PLAIN_SETTINGS))

    assert "carr" in refusal(base, CarrierError, call=call)


def test_an_identity_where_the_vault_is_due_is_refused_without_repeating_it(base, tmp_path):
    from hf_fingerprint.vault import Vault

    identity = Path(base.vault.folder / "identity.age")
    call = FingerprintCallback(Fingerprint(base.model, RECIPIENT, identity))

    assert "identity" in refusal(base, VaultError, call=call)
    secret = "AGE-SECRET-KEY-1" + "Q" * 58
    with pytest.raises(VaultError) as caught:
        Vault.create(tmp_path / "new", public_key=secret)
    assert str(caught.value).endswith(".")
    assert secret[15:] not in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_two_trainings_for_one_recipient_are_not_run_at_once(base):
    first = callback(base).fingerprint
    first.bind(AutoModelForImageClassification.from_pretrained(base.model))

    sentence = refusal(base, VaultError)
    first._lock.release()

    assert "is being trained already" in sentence


@pytest.mark.parametrize(("rate", "warns"), [(0.05, True), (1e-5, False)])
def test_sgd_that_overshoots_the_mark_is_warned_of_with_a_strength_that_works(base, rate, warns, recwarn):
    call = callback(base, strength=0.5, embed=False)
    model = AutoModelForImageClassification.from_pretrained(base.model)
    settings = TrainingArguments(
        output_dir=str(base.root / "out"), max_steps=1, optim="sgd", **QUIET | {"learning_rate": rate}
    )

    Trainer(model=model, args=settings, train_dataset=images(), callbacks=[call]).train()
    call.fingerprint._lock.release()

    said = [str(warning.message) for warning in recwarn if "overshoots the mark" in str(warning.message)]
    assert bool(said) is warns
    if warns:
        largest = float(said[0].rstrip(".").rsplit(" ", 1)[1])
        assert 0 < largest < 0.5
        assert 0.4 < largest * rate * call.regularizer.max_curvature() < 2


def test_the_steepest_curvature_is_that_of_the_term():
    regularizer = DeepMarks(bytes(32), 7).fingerprint(0).bind(model := torch.nn.Conv2d(3, 4, 3))
    weights = model.weight.detach().flatten().double().requires_grad_()
    part = DeepMarks(bytes(32), 7).maps(model)["weight"]

    def term(w):
        y = part._matrix.double() @ w.view(4, 27).mean(0)
        return (y - regularizer._target.double()).square().mean()

    hessian = torch.autograd.functional.hessian(term, weights)

    assert regularizer.max_curvature() == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=1e-4)
