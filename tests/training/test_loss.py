import json
import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch

from hf_fingerprint.errors import CarrierError, FingerprintError
from hf_fingerprint.training import DeepMarksLoss, Fingerprint
from tests.helpers.error_checks import refused
from tests.helpers.loss_in_processes import (
    RECIPIENT,
    STRENGTH,
    ReferenceTerm,
    batch,
    difference,
    load,
    register_base,
    run_in_processes,
    train,
)
from tests.helpers.small_models import new_vault, save_timm


EQUAL = 1e-6  # relative to each tensor's largest weight: a few roundings of float32


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A registered base and its vault, which every training here is for the same recipient of."""
    root = tmp_path_factory.mktemp("place")
    folder = save_timm(root / "model", "test_vit", num_classes=10, img_size=32)
    vault = new_vault(root / "vault")
    register_base(folder, vault)
    return SimpleNamespace(folder=folder, vault=vault)


@pytest.fixture(autouse=True)
def no_accelerator_is_left():
    """Accelerate keeps its settings for the rest of a process."""
    yield
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(True)
    GradientState._reset_state()


@pytest.fixture
def fingerprint(place):
    fingerprint = Fingerprint(place.folder, RECIPIENT, place.vault)
    yield fingerprint
    fingerprint._release_lock()


@pytest.fixture
def model(place):
    return load(place.folder)


def job(place, **settings):
    return {"folder": str(place.folder), "vault": str(place.vault.folder)} | settings


class TestTheTerm:
    def test_it_is_strength_times_r_as_the_definition_has_it(self, model, place, fingerprint):
        torch.manual_seed(0)
        deepmarks = DeepMarksLoss(model, fingerprint, STRENGTH, embed=False)
        dense = ReferenceTerm(model, place.folder, place.vault)
        carriers = list(deepmarks.regularizer.parameters.values())
        with torch.no_grad():
            for carrier in carriers:
                carrier += 0.01 * carrier.std() * torch.randn_like(carrier)
        ours, expected = deepmarks(), dense()

        assert float(ours.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
        found = torch.autograd.grad(ours, carriers)
        is_active = torch.autograd.grad(expected, carriers)
        worst = max(float((f - w).abs().max() / w.abs().max()) for f, w in zip(found, is_active, strict=True))
        assert worst < 1e-5

    def test_a_mark_put_in_leaves_nothing_to_train(self, model, fingerprint):
        deepmarks = DeepMarksLoss(model, fingerprint)

        assert deepmarks.metrics == {}
        assert deepmarks.last_measurement is None
        assert float(deepmarks().detach()) < 1e-9
        assert deepmarks.metrics["fingerprint_agreement"] == 1.0

    def test_what_it_shows_holds_no_secret(self, model, place, fingerprint):
        deepmarks = DeepMarksLoss(model, fingerprint)
        (base,) = place.vault.bases()

        assert repr(deepmarks).startswith("DeepMarksLoss(strength=0.1, Regularizer(carriers=")
        assert RECIPIENT not in repr(deepmarks)
        assert base.secret.hex() not in repr(deepmarks)
        json.dumps(deepmarks.metrics)
        with pytest.raises(FingerprintError, match="can't be pickled"):
            pickle.dumps(deepmarks)

    def test_it_is_wanted_where_the_model_trains(self, model, fingerprint):
        deepmarks = DeepMarksLoss(model, fingerprint)

        assert deepmarks.is_active
        with torch.no_grad():
            assert not deepmarks.is_active
        assert not (model.eval() and deepmarks.is_active)


class TestOneProcess:
    @pytest.mark.parametrize("settings", [{}, {"accumulation": 3}, {"accumulation": 2, "clip": 0.5}])
    def test_accelerate_trains_as_the_definition_does(self, place, settings):
        ours, dense, plain = (
            train(job(place, wrap="accelerate", term=term, **settings)) for term in ("ours", "dense", "none")
        )

        assert difference(ours, dense) <= EQUAL
        assert difference(plain, dense) > 100 * EQUAL
        assert ours["metrics"][1] > 0.5

    def test_accelerates_mixed_precision_leaves_the_term_in_full_precision(self, model, fingerprint):
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=True, mixed_precision="bf16")
        deepmarks = DeepMarksLoss(model, fingerprint, STRENGTH, embed=False)
        prepared = accelerator.prepare(model)
        images, labels = batch(0, 0)
        with accelerator.autocast():
            term = deepmarks()
            accelerator.backward(torch.nn.functional.cross_entropy(prepared(images), labels) + term)

        assert term.dtype == torch.float32
        assert float(term.detach()) == pytest.approx(STRENGTH)

    def test_it_may_be_bound_to_a_prepared_model(self, model, fingerprint):
        from accelerate import Accelerator

        prepared = Accelerator(cpu=True).prepare(torch.nn.Sequential(model)[0])

        assert float(DeepMarksLoss(prepared, fingerprint, STRENGTH, embed=False)().detach()) == pytest.approx(STRENGTH)


@pytest.fixture(scope="module")
def found(place, tmp_path_factory):
    """Trainings by two processes, by what they do."""
    usual = {"accumulation": 2, "clip": 1.0}
    jobs = {
        "accelerate, ours": {"wrap": "accelerate", "term": "ours", **usual},
        "accelerate, dense": {"wrap": "accelerate", "term": "dense", **usual},
        "ddp, ours": {"wrap": "ddp", "term": "ours"},
        "ddp, dense": {"wrap": "ddp", "term": "dense"},
        "task, ours": {"wrap": "task", "term": "ours"},
        "model, ours": {"wrap": "model", "term": "ours"},
        "fsdp2, ours": {"wrap": "fsdp2", "term": "ours"},
        "fsdp2, ours, early": {"wrap": "fsdp2", "term": "ours", "early": True},
        "fsdp2, dense": {"wrap": "fsdp2", "term": "dense", "early": True},
        "ddp, half frozen, ours": {"wrap": "ddp", "term": "ours", "freeze": 3},
        "fsdp2, half frozen, ours": {"wrap": "fsdp2", "term": "ours", "freeze": 3},
        "ddp, half frozen, dense": {"wrap": "ddp", "term": "dense", "freeze": 3},
        "fsdp2, embedded": {"wrap": "fsdp2", "term": "ours", "embed": True, "steps": 0},
    }
    work = tmp_path_factory.mktemp("two")
    return dict(zip(jobs, run_in_processes([job(place, **j) for j in jobs.values()], work, 2), strict=True))


@pytest.mark.integration
class TestTwoProcesses:
    def test_there_were_two(self, found):
        assert {int(weights["world"]) for weights in found.values()} == {2}

    @pytest.mark.parametrize(
        ("ours", "dense"),
        [
            ("accelerate, ours", "accelerate, dense"),
            ("ddp, ours", "ddp, dense"),
            ("task, ours", "ddp, dense"),
            ("model, ours", "ddp, dense"),
            ("fsdp2, ours", "ddp, dense"),
            ("fsdp2, ours", "fsdp2, dense"),
            ("fsdp2, ours, early", "ddp, dense"),
            ("ddp, half frozen, ours", "ddp, half frozen, dense"),
            ("fsdp2, half frozen, ours", "ddp, half frozen, dense"),
        ],
    )
    def test_they_train_as_the_definition_does(self, found, ours, dense):
        assert difference(found[ours], found[dense]) <= EQUAL

    def test_the_term_is_what_they_agree_about(self, found, place):
        alone = train(job(place, wrap="ddp-less", term="none"))

        assert difference(alone, found["ddp, dense"]) > 100 * EQUAL
        assert found["fsdp2, ours"]["metrics"][1] > 0.5

    def test_a_sharded_model_is_marked_at_once(self, found, model, fingerprint):
        DeepMarksLoss(model, fingerprint)

        assert difference(found["fsdp2, embedded"], model.state_dict()) <= EQUAL
        assert found["fsdp2, embedded"]["metrics"][1] == 1.0


class TestRefusals:
    def refusal(self, action, error=FingerprintError) -> str:
        said = refused(action, error=error)
        assert RECIPIENT not in said
        return said

    @pytest.mark.parametrize("strength", [0.0, -0.1, math.nan, math.inf])
    def test_a_strength_that_is_none(self, model, fingerprint, strength):
        before = [parameter.detach().clone() for parameter in model.parameters()]

        assert "finite number above 0" in self.refusal(lambda: DeepMarksLoss(model, fingerprint, strength))
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))

    def test_a_model_without_the_carriers(self, fingerprint):
        other = timm.create_model("test_resnet")

        assert "carriers of base" in self.refusal(lambda: DeepMarksLoss(other, fingerprint))
        assert "give the model of" in self.refusal(lambda: DeepMarksLoss(torch.nn.Linear(3, 3), fingerprint))

    def test_no_carriers_at_all(self, model):
        from hf_fingerprint.training.regularizer import Regularizer

        empty = torch.zeros(8)
        assert "no carriers" in self.refusal(lambda: Regularizer(model, {}, empty, empty, empty), CarrierError)

    def test_a_model_that_does_not_train(self, model, fingerprint):
        model.requires_grad_(False)

        assert "None of the 24 carriers" in self.refusal(lambda: DeepMarksLoss(model, fingerprint))
        model.requires_grad_(True)
        DeepMarksLoss(model, fingerprint)

    def test_a_refusal_does_not_stand_in_the_way_of_the_next_attempt(self, model, fingerprint, place):
        model.requires_grad_(False)
        self.refusal(lambda: DeepMarksLoss(model, fingerprint))
        again = Fingerprint(place.folder, RECIPIENT, place.vault)
        model.requires_grad_(True)

        assert DeepMarksLoss(model, again)
        again._release_lock()

    def test_re_initialized_weights(self, fingerprint):
        torch.manual_seed(99)
        fresh = timm.create_model("test_vit", num_classes=10, img_size=32)

        assert "reinitialized" in self.refusal(lambda: DeepMarksLoss(fresh, fingerprint))

    def test_a_peft_adapter(self, model, fingerprint):
        from peft import LoraConfig, get_peft_model

        adapted = get_peft_model(model, LoraConfig(target_modules=["qkv"]))

        assert "wrapped by PEFT" in self.refusal(lambda: DeepMarksLoss(adapted, fingerprint))

    def test_a_new_head_is_no_obstacle(self, model, fingerprint):
        model.reset_classifier(3)

        assert DeepMarksLoss(model, fingerprint)().isfinite()

    def test_weights_that_are_not_finite(self, model, fingerprint):
        deepmarks = DeepMarksLoss(model, fingerprint)
        with torch.no_grad():
            next(iter(deepmarks.regularizer.parameters.values())).fill_(np.nan)

        assert math.isnan(float(deepmarks().detach()))  # as the task's loss would be: nothing is hidden
