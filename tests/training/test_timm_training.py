import copy
import io
import pickle

import pytest
import timm
import torch
from timm.loss import LabelSmoothingCrossEntropy
from timm.models import save_for_hf
from timm.optim import create_optimizer_v2
from timm.task import ClassificationTask, LogitDistillationTask
from timm.utils import CheckpointSaver, ModelEmaV3

from hf_fingerprint import trace
from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.training import (
    DeepMarksLoss,
    Fingerprint,
    FingerprintCriterion,
    FingerprintedModel,
    FingerprintTask,
)
from hf_fingerprint.training.deepmarks_preset import DeepMarks
from tests.helpers.small_models import PASSPHRASE, SETTINGS, bytes_of, new_vault, save_timm


pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_timm(tmp_path_factory.mktemp("base") / "model", "test_resnet")


@pytest.fixture(scope="module")
def fingerprint(base, tmp_path_factory):
    """One recipient's mark; bound to a new model in each test."""
    return Fingerprint(base, "alice", new_vault(tmp_path_factory.mktemp("vault") / "vault"), SETTINGS)


@pytest.fixture
def model(base):
    return load(base)


def load(folder):
    return timm.create_model(f"local-dir:{folder}", pretrained=True).train()


def batch(seed: int, count: int = 4):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 64, 64, generator=generator), torch.randint(0, 1000, (count,), generator=generator)


def by_hand(model, fingerprint):
    deepmarks, inner = DeepMarksLoss(model, fingerprint, 0.5), LabelSmoothingCrossEntropy()
    return model, lambda images, labels: inner(model(images), labels) + deepmarks()


def by_criterion(model, fingerprint):
    criterion = FingerprintCriterion(LabelSmoothingCrossEntropy(), DeepMarksLoss(model, fingerprint, 0.5))
    return model, lambda images, labels: criterion(model(images), labels)


def by_task(model, fingerprint):
    task = FingerprintTask(
        ClassificationTask(model, LabelSmoothingCrossEntropy(), verbose=False), DeepMarksLoss(model, fingerprint, 0.5)
    )
    return model, lambda images, labels: task(images, labels)["loss"]


def by_model(model, fingerprint):
    marked, inner = FingerprintedModel(model, fingerprint, 0.5), LabelSmoothingCrossEntropy()
    return marked, lambda images, labels: inner(marked(images), labels) + marked.fingerprint_loss()


def by_models_criterion(model, fingerprint):
    marked = FingerprintedModel(model, fingerprint, 0.5)
    criterion = marked.criterion(LabelSmoothingCrossEntropy())
    return marked, lambda images, labels: criterion(marked(images), labels)


def unmarked(model, fingerprint):
    inner = LabelSmoothingCrossEntropy()
    return model, lambda images, labels: inner(model(images), labels)


def trained(way, base, fingerprint, scaler=None, steps=3, accumulation=2):
    """The weights after some steps of timm's loop: accumulation, clipping, momentum."""
    model, loss_of = way(load(base), fingerprint)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    for step in range(steps):
        for part in range(accumulation):
            loss = loss_of(*batch(accumulation * step + part)) / accumulation
            (loss if scaler is None else scaler.scale(loss)).backward()
        if scaler is not None:
            scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        optimizer.zero_grad()
    return model.state_dict()


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.fixture(scope="module")
def expected(base, fingerprint):
    """The weights that every way of adding the term should lead to."""
    return trained(by_hand, base, fingerprint)


class TestOneStrengthInEveryLoop:
    @pytest.mark.parametrize("way", [by_criterion, by_task, by_model, by_models_criterion])
    def test_all_ways_give_the_same_weights_to_the_last_bit(self, way, expected, base, fingerprint):
        assert_equal(trained(way, base, fingerprint), expected)

    @pytest.mark.parametrize("way", [by_criterion, by_task, by_model])
    def test_a_gradient_scaler_changes_nothing(self, way, expected, base, fingerprint):
        assert_equal(trained(way, base, fingerprint, torch.amp.GradScaler("cpu", init_scale=2.0**14)), expected)

    def test_accumulation_divides_the_term_as_it_does_the_loss(self, model, fingerprint):
        deepmarks = DeepMarksLoss(model, fingerprint, 0.5)
        carriers = list(deepmarks.regularizer.parameters.values())
        with torch.no_grad():
            carriers[0].mul_(1.001)
        whole = torch.autograd.grad(deepmarks(), carriers)
        for _ in range(4):
            (deepmarks() / 4).backward()

        for carrier, gradient in zip(carriers, whole, strict=True):
            torch.testing.assert_close(carrier.grad, gradient, rtol=1e-6, atol=0)

    def test_the_term_is_what_makes_the_difference(self, expected, base, fingerprint):
        plain = trained(unmarked, base, fingerprint)

        assert any(not torch.equal(plain[name], expected[name]) for name in plain)


class TestCriterion:
    def test_validation_losses_stay_what_they_were(self, model, fingerprint):
        inner = torch.nn.CrossEntropyLoss()
        criterion = FingerprintCriterion(inner, DeepMarksLoss(model, fingerprint, embed=False))
        images, labels = batch(0)
        output = model(images)

        assert criterion(output, labels) > inner(output, labels) + 0.01
        with torch.no_grad():
            assert torch.equal(criterion(output, labels), inner(output, labels))
        model.eval()
        assert torch.equal(criterion(output, labels), inner(output, labels))

    def test_the_model_is_no_part_of_it(self, model, fingerprint):
        criterion = FingerprintCriterion(torch.nn.CrossEntropyLoss(), DeepMarksLoss(model, fingerprint))

        assert [*criterion.parameters(), *criterion.buffers(), *criterion.state_dict()] == []
        assert "DeepMarksLoss(strength=0.1" in repr(criterion)
        criterion.eval()
        assert model.training

    def test_autocast_does_not_touch_the_term(self, model, fingerprint):
        deepmarks = DeepMarksLoss(model, fingerprint, 0.5, embed=False)
        carriers = list(deepmarks.regularizer.parameters.values())
        criterion = FingerprintCriterion(lambda output, target: output.new_zeros(()), deepmarks)
        expected = deepmarks()
        gradients = torch.autograd.grad(expected, carriers)
        with torch.autocast("cpu", torch.bfloat16):
            loss = criterion(torch.zeros(1), None)
            under_autocast = torch.autograd.grad(loss, carriers)

        assert loss.dtype == torch.float32
        assert torch.equal(loss, expected)
        assert all(torch.equal(a, b) for a, b in zip(gradients, under_autocast, strict=True))

    def test_autocast_does_not_touch_the_papers_dense_projection_either(self, model):
        deepmarks = DeepMarksLoss(model, DeepMarks(bytes(32)).fingerprint(3), embed=False)
        (carrier,) = deepmarks.regularizer.parameters.values()
        (expected,) = torch.autograd.grad(deepmarks(), carrier)
        with torch.autocast("cpu", torch.bfloat16):
            (found,) = torch.autograd.grad(deepmarks(), carrier)

        assert torch.equal(found, expected)

    def test_it_is_never_pickled(self, model, fingerprint):
        criterion = FingerprintCriterion(torch.nn.CrossEntropyLoss(), DeepMarksLoss(model, fingerprint))

        for save in (pickle.dumps, lambda thing: torch.save(thing, io.BytesIO())):
            with pytest.raises(FingerprintError, match="can't be pickled"):
                save(criterion)


class TestTask:
    @pytest.fixture
    def task(self, model, fingerprint):
        inner = ClassificationTask(model, torch.nn.CrossEntropyLoss(), verbose=False)
        return FingerprintTask(inner, DeepMarksLoss(model, fingerprint, 0.5, embed=False))

    def test_its_result_has_both_metrics(self, task, model):
        images, labels = batch(0)
        result = task(images, labels)

        assert set(result) == {"loss", "output", "fingerprint_loss", "fingerprint_agreement"}
        assert not result["fingerprint_loss"].requires_grad
        assert result["fingerprint_loss"] == 1
        assert result["fingerprint_agreement"] == 0  # the base says nothing at any position
        assert result["loss"].requires_grad
        task_loss = torch.nn.functional.cross_entropy(result["output"], labels)
        torch.testing.assert_close(result["loss"], task_loss + 0.5 * result["fingerprint_loss"])

    def test_without_gradients_it_is_the_task(self, task):
        task.eval()
        with torch.no_grad():
            result = task(*batch(0))
            expected = task.task(*batch(0))

        assert set(result) == {"loss", "output"}
        assert torch.equal(result["loss"], expected["loss"])

    def test_its_checkpoints_are_the_tasks(self, task, model, tmp_path):
        plain = ClassificationTask(model, torch.nn.CrossEntropyLoss(), verbose=False)
        optimizer = torch.optim.SGD(task.get_trainable_module().parameters(), lr=0.1)
        task.setup_ema(decay=0.9)
        task.update_ema(step=10)
        saver = CheckpointSaver(model, optimizer, task=task, checkpoint_dir=tmp_path, recovery_dir=tmp_path)
        saver.save_checkpoint(0, metric=1.0)
        (saved,) = tmp_path.glob("checkpoint-*.pth.tar")
        state = torch.load(saved, weights_only=True)

        assert_equal(state["state_dict"], plain.get_checkpoint_state()["state_dict"])
        assert_equal(state["state_dict_ema"], model.state_dict())
        assert "task_state" not in state
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        task.load_checkpoint_state(state["state_dict"], state.get("task_state"))
        assert_equal(model.state_dict(), state["state_dict"])

    def test_it_delegates_to_the_task(self, task, model):
        assert task.get_trainable_module() is model
        assert task.get_eval_model() is model
        assert [*task.get_clip_parameters(exclude_head=True)] == [*model.parameters()][:-2]
        assert not task.has_ema()
        assert type(task.create_evaluator()).__name__ == "ClassificationEvaluator"
        with task.no_sync():
            pass

    def test_it_runs_compiled(self, task):
        images, labels = batch(0)
        expected = task(images, labels)["loss"]
        task.compile(backend="aot_eager")
        result = task(images, labels)
        result["loss"].backward()

        torch.testing.assert_close(result["loss"], expected, rtol=1e-4, atol=1e-5)
        assert all(p.grad is not None for p in task.deepmarks.regularizer.parameters.values())

    def test_distillation_is_a_task_too(self, base, model, fingerprint):
        teacher, criterion = load(base).eval(), torch.nn.CrossEntropyLoss()
        inner = LogitDistillationTask(model, teacher, criterion=criterion, verbose=False)
        task = FingerprintTask(inner, DeepMarksLoss(model, fingerprint))
        task(*batch(0))["loss"].backward()

        assert task.deepmarks.metrics["fingerprint_agreement"] == 1.0


class TestModel:
    @pytest.fixture
    def marked(self, model, fingerprint):
        return FingerprintedModel(model, fingerprint)

    def test_its_attributes_are_the_timm_models(self, marked, model):
        images, _ = batch(0)
        marked.eval()

        assert torch.equal(marked(images), model(images))
        assert marked.num_classes == 1000
        assert marked.pretrained_cfg["architecture"] == "test_resnet"
        assert marked.get_classifier() is model.get_classifier()
        assert torch.equal(marked.forward_features(images), model.forward_features(images))
        assert not model.training
        with pytest.raises(AttributeError, match="nothing_of_the_kind"):
            marked.nothing_of_the_kind
        assert not hasattr(marked, "module")

    def test_the_mark_is_in_at_once_or_grows(self, marked, base, fingerprint):
        assert marked.metrics["fingerprint_agreement"] == 1.0
        assert marked.metrics["fingerprint_loss"] < 1e-9

        slow = FingerprintedModel(load(base), fingerprint, strength=20.0, embed=False)
        before = slow.metrics
        optimizer = torch.optim.SGD(slow.parameters(), lr=0.01, momentum=0.9)
        for _ in range(30):
            optimizer.zero_grad()
            slow.fingerprint_loss().backward()
            optimizer.step()
        assert before == {"fingerprint_loss": 1.0, "fingerprint_agreement": 0.0}
        assert slow.metrics["fingerprint_loss"] < 0.5
        assert slow.metrics["fingerprint_agreement"] > 0.9

    def test_names_and_keys_are_the_timm_models(self, marked, model):
        assert_equal(marked.state_dict(), model.state_dict())
        assert marked.state_dict()._metadata == model.state_dict()._metadata
        assert [name for name, _ in marked.named_parameters()] == [name for name, _ in model.named_parameters()]
        assert [name for name, _ in marked.named_buffers()] == [name for name, _ in model.named_buffers()]
        first, _ = next(marked.named_parameters(prefix="inside"))
        assert first == f"inside.{next(model.named_parameters())[0]}"
        groups = [create_optimizer_v2(m, "adamw", layer_decay=0.7).param_groups for m in (marked, model)]
        for group, expected in zip(*groups, strict=True):
            assert group["lr_scale"] == expected["lr_scale"]
            assert len(group["params"]) == len(expected["params"])
            assert all(a is b for a, b in zip(group["params"], expected["params"], strict=True))

    def test_it_loads_a_plain_state(self, marked, base):
        other = load(base)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(1.0)
        marked.load_state_dict(other.state_dict())
        assert_equal(marked.export().state_dict(), other.state_dict())

        found = marked.load_state_dict({"no.such": torch.zeros(1)}, strict=False)
        assert found.unexpected_keys == ["no.such"]
        assert "conv1.weight" in found.missing_keys or not any(key.startswith("model.") for key in found.missing_keys)

    def test_a_module_around_it_has_the_plain_keys_too(self, marked, model):
        around = torch.nn.Module()
        around.module = marked
        state = {name: value + 1 for name, value in around.state_dict().items()}

        assert list(state) == [f"module.{name}" for name in model.state_dict()]
        around.load_state_dict(state)
        for name, value in model.state_dict().items():
            assert torch.equal(value, state[f"module.{name}"])

    def test_an_ema_copy_has_its_own_metrics(self, marked):
        ema = ModelEmaV3(marked, decay=0.5)
        with torch.no_grad():
            for parameter in marked.parameters():
                parameter.mul_(-1)

        assert marked.metrics["fingerprint_agreement"] < 0.6
        assert ema.module.metrics["fingerprint_agreement"] == 1.0
        assert not ema.module.training
        ema.update(marked)
        ema.update(marked)
        assert ema.module.metrics["fingerprint_loss"] > 1
        assert_equal(ema.module.state_dict(), ema.module.export().state_dict())

    def test_an_ema_in_another_precision_works(self, marked):
        ema = ModelEmaV3(marked, decay=0.9, dtype=torch.bfloat16)
        ema.update(marked)

        assert next(ema.module.parameters()).dtype == torch.bfloat16
        assert ema.module.metrics["fingerprint_agreement"] > 0.5
        assert ema.module.metrics["fingerprint_loss"] > 1e-6  # rounded
        assert next(marked.parameters()).dtype == torch.float32

    def test_a_copy_of_a_copy_is_one_too(self, marked, model):
        copied = copy.deepcopy(copy.deepcopy(marked))

        assert copied.export() is not model
        assert copied.fingerprint_loss().requires_grad
        assert copied.metrics["fingerprint_agreement"] == 1.0

    def test_it_runs_compiled(self, marked):
        images, labels = batch(0)
        expected = torch.nn.functional.cross_entropy(marked(images), labels)
        compiled = torch.compile(marked, backend="aot_eager")
        loss = torch.nn.functional.cross_entropy(compiled(images), labels) + compiled.fingerprint_loss()
        loss.backward()

        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
        assert all(parameter.grad is not None for parameter in marked.parameters())
        assert [*compiled.state_dict()] == [f"_orig_mod.{name}" for name in marked.state_dict()]

    @pytest.mark.parametrize("moved", [{"memory_format": torch.channels_last}, {"dtype": torch.float64}])
    def test_it_may_be_moved(self, marked, moved, base, fingerprint):
        images, _ = batch(0)
        marked.to(**moved)
        out = marked(images.to(**moved)).float().mean() + marked.fingerprint_loss()
        out.backward()

        assert marked.metrics["fingerprint_agreement"] == 1.0
        for parameter in marked.deepmarks.regularizer.parameters.values():
            assert parameter.grad.dtype == parameter.dtype

    def test_it_is_never_pickled(self, marked):
        with pytest.raises(FingerprintError, match="can't be pickled"):
            torch.save(marked, io.BytesIO())

    def test_what_is_exported_is_an_ordinary_model_that_traces(self, marked, fingerprint, base, tmp_path):
        optimizer = torch.optim.AdamW(marked.parameters(), lr=1e-4)
        for step in range(3):
            images, labels = batch(step)
            loss = torch.nn.functional.cross_entropy(marked(images), labels) + marked.fingerprint_loss()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        plain = marked.export()
        save_for_hf(plain, tmp_path / "trained", safe_serialization=True)

        assert type(plain).__module__ == "timm.models.resnet"
        assert type(torch.load(saved(plain), weights_only=False)) is type(plain)
        assert bytes_of(base).keys() == bytes_of(tmp_path / "trained").keys()
        assert_equal(load(tmp_path / "trained").state_dict(), plain.state_dict())
        recorded = fingerprint.record(tmp_path / "trained")
        result = trace(tmp_path / "trained", fingerprint.vault, passphrase=PASSPHRASE)
        assert [score.recipient for score in result.accused] == ["alice"]
        assert recorded.agreement > 0.99


def saved(model) -> io.BytesIO:
    """A pickle of a whole model."""
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return stream
