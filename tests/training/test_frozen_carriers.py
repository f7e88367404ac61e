"""Partial freezing: the carriers that train hold the mark, and the others get it when the copy is recorded."""

import json
import shutil
import warnings
from contextlib import contextmanager

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from timm.task import ClassificationTask

from hf_fingerprint import issue, trace
from hf_fingerprint.checkpoints import rewrite_tensors
from hf_fingerprint.config import FingerprintConfig
from hf_fingerprint.errors import FingerprintWarning
from hf_fingerprint.keys import commitment
from hf_fingerprint.registration import predicted_score, register
from hf_fingerprint.training import (
    DeepMarksLoss,
    Fingerprint,
    FingerprintCallback,
    FingerprintedModel,
    FingerprintTask,
)
from hf_fingerprint.training.trainer import FingerprintTrainer
from hf_fingerprint.vault import Vault, begin_training
from tests.helpers.error_checks import refused
from tests.helpers.small_models import PASSPHRASE, SETTINGS, bytes_of, new_vault, save_timm, save_vit
from tests.helpers.training_runs import QUIET, images


pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore::hf_fingerprint.errors.FingerprintWarning")]
BLOCKS, STEPS = 6, 4


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A ViT with 24 carriers in 6 blocks, and a vault that knows it; each test works on a copy of the vault."""
    root = tmp_path_factory.mktemp("template")
    save_timm(root / "model", "test_vit", num_classes=10, img_size=32)
    register(root / "model", new_vault(root / "vault"), SETTINGS)
    return root


@pytest.fixture
def base(template):
    return template / "model"


@pytest.fixture
def vault(template, tmp_path):
    shutil.copytree(template / "vault", tmp_path / "vault")
    return Vault(tmp_path / "vault")


def load(folder, frozen=BLOCKS // 2):
    """The model, whose first blocks don't train."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).train()
    model.blocks[:frozen].requires_grad_(False)
    return model


def save(model, folder):
    save_for_hf(model, folder, safe_serialization=True)
    return folder


def batch(step):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(4, 3, 32, 32, generator=generator), torch.randint(0, 10, (4,), generator=generator)


def train(model, loss_of, backward=torch.Tensor.backward, steps=STEPS):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for step in range(steps):
        optimizer.zero_grad()
        backward(loss_of(*batch(step)))
        optimizer.step()
    return model


def by_loss(model, fingerprint, **options):
    deepmarks = DeepMarksLoss(model, fingerprint, **options)
    return train(model, lambda images, labels: torch.nn.functional.cross_entropy(model(images), labels) + deepmarks())


def by_accelerate(model, fingerprint):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    accelerator = Accelerator(cpu=True)
    prepared = accelerator.prepare(model)
    deepmarks = DeepMarksLoss(prepared, fingerprint)
    loss_of = lambda images, labels: torch.nn.functional.cross_entropy(prepared(images), labels) + deepmarks()  # noqa: E731
    train(model, loss_of, accelerator.backward)
    AcceleratorState._reset_state(True)  # accelerate keeps its settings for the rest of a process
    GradientState._reset_state()
    return model


def by_task(model, fingerprint):
    inner = ClassificationTask(model, torch.nn.CrossEntropyLoss(), verbose=False)
    task = FingerprintTask(inner, DeepMarksLoss(model, fingerprint))
    return train(model, lambda images, labels: task(images, labels)["loss"])


def by_model(model, fingerprint):
    marked = FingerprintedModel(model, fingerprint)
    criterion = marked.criterion(torch.nn.CrossEntropyLoss())
    return train(marked, lambda images, labels: criterion(marked(images), labels)).export()


def key_in_training(vault, recipient="alice"):
    (known,) = vault.bases()
    return begin_training(vault, known, recipient)[1]


def closed_form(base, vault, key, name, folder):
    """A carrier of a copy that is issued with this key, to the last bit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_fingerprint.vault.record_store.new_secret", lambda: key)
        if not folder.exists():
            issue(base, "a copy with the same key", vault, folder)
    return load_file(folder / "model.safetensors")[name]


def tensors(folder):
    return {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}


def is_frozen(name, frozen=BLOCKS // 2):
    return any(name.startswith(f"blocks.{i}.") for i in range(frozen))


def slow(way):
    return pytest.param(way, marks=pytest.mark.slow)


@contextmanager
def said():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = []
        yield found
    found += [str(w.message) for w in caught if issubclass(w.category, FingerprintWarning)]


@pytest.fixture(scope="module")
def whole_score(template, tmp_path_factory):
    """The score of a copy of which every carrier trained."""
    root = tmp_path_factory.mktemp("whole")
    shutil.copytree(template / "vault", root / "vault")
    fingerprint = Fingerprint(template / "model", "alice", root / "vault")
    return fingerprint.record(save(by_loss(load(template / "model", 0), fingerprint), root / "out")).score


class TestEveryLoop:
    @pytest.mark.parametrize("way", [by_loss, slow(by_accelerate), slow(by_task), by_model])
    def test_ends_with_a_copy_that_traces_like_one_trained_whole(self, way, base, vault, tmp_path, whole_score):
        fingerprint = Fingerprint(base, "alice", vault)
        out = save(way(load(base), fingerprint), tmp_path / "out")
        key, original, saved = key_in_training(vault), tensors(base), tensors(out)
        recorded = fingerprint.record(out)

        carriers = {carrier.name for carrier in vault.bases()[0].carriers}
        after = tensors(out)
        for name, value in saved.items():
            if is_frozen(name):
                assert torch.equal(value, original[name])
            if is_frozen(name) and name in carriers:
                assert torch.equal(after[name], closed_form(base, vault, key, name, tmp_path / "issued"))
            else:
                assert torch.equal(after[name], value)
        result = trace(out, vault, passphrase=PASSPHRASE)
        assert result.accused[0].copy_id == recorded.copy_id
        assert recorded.score > 0.9 * whole_score
        assert recorded.agreement > 0.99

    @pytest.mark.parametrize("way", ["callback", slow("trainer")])
    def test_of_transformers_too(self, way, tmp_path):
        from transformers import AutoModelForImageClassification, Trainer, TrainingArguments

        base, vault = save_vit(tmp_path / "model"), new_vault(tmp_path / "vault")
        scores = []
        for frozen in (0, 2):
            model = AutoModelForImageClassification.from_pretrained(base)
            model.vit.layers[:frozen].requires_grad_(False)
            fingerprint, out = Fingerprint(base, "alice", vault, SETTINGS), tmp_path / f"out{frozen}"
            arguments = TrainingArguments(str(tmp_path / "work"), max_steps=STEPS, learning_rate=1e-3, **QUIET)
            given = {"model": model, "args": arguments, "train_dataset": images()}
            if way == "callback":
                trainer = Trainer(**given, callbacks=[FingerprintCallback(fingerprint)])
            else:
                trainer = FingerprintTrainer(**given, fingerprint=fingerprint)
            trainer.train()
            trainer.save_model(out)
            assert json.dumps(trainer.state.log_history).find("alice") < 0
            scores.append(fingerprint.record(out).score)
            assert {each.recipient for each in trace(out, vault, passphrase=PASSPHRASE).accused} == {"alice"}

        assert scores[1] > 0.9 * scores[0]

    def test_leaves_carriers_out_that_the_trainers_optimizer_lacks(self, tmp_path):
        from transformers import AutoModelForImageClassification, Trainer, TrainingArguments

        base, vault = save_vit(tmp_path / "model"), new_vault(tmp_path / "vault")
        model = AutoModelForImageClassification.from_pretrained(base)
        call = FingerprintCallback(Fingerprint(base, "alice", vault, SETTINGS))
        optimizer = torch.optim.AdamW(model.vit.layers[2:].parameters())
        arguments = TrainingArguments(str(tmp_path / "work"), max_steps=1, **QUIET)
        Trainer(
            model=model, args=arguments, train_dataset=images(), callbacks=[call], optimizers=(optimizer, None)
        ).train()

        assert len(call.regularizer.parameters) == 12
        assert all(name.startswith(("vit.layers.2", "vit.layers.3")) for name in call.regularizer.parameters)


class TestTheTerm:
    def test_is_one_without_the_mark_and_zero_with_it(self, base, vault):
        model = load(base)
        deepmarks = DeepMarksLoss(model, Fingerprint(base, "alice", vault), strength=0.1, embed=False)
        assert float(deepmarks().detach()) == pytest.approx(0.1)
        deepmarks.regularizer.embed()

        assert float(deepmarks().detach()) < 1e-9
        for (name, value), (_, before) in zip(model.named_parameters(), load(base).named_parameters(), strict=True):
            assert not is_frozen(name) or torch.equal(value, before)

    def test_says_once_how_much_trains(self, base, vault):
        fingerprint, model = Fingerprint(base, "alice", vault), load(base)
        with said() as first:
            DeepMarksLoss(model, fingerprint)
        with said() as again:
            DeepMarksLoss(model, fingerprint)
            FingerprintedModel(load(base), fingerprint)
        with said() as whole:
            DeepMarksLoss(load(base, 0), fingerprint)

        (known,) = vault.bases()
        trained = [carrier.name for carrier in known.carriers if not is_frozen(carrier.name)]
        share = predicted_score(known, carriers=trained) / predicted_score(known)
        assert first == [
            f"12 of the 24 carriers of base {known.base_id} (122,880 of 245,760 weights) train, with {share:.0%} of "
            f"the predicted score: the others get their mark in closed form when the copy is recorded."
        ]
        assert 0.5 < share < 1
        assert again == whole == []

    def test_is_refused_with_less_than_half_of_the_score(self, tmp_path):
        base, vault = save_timm(tmp_path / "model", num_classes=10, img_size=32), new_vault(tmp_path / "vault")
        register(base, vault, FingerprintConfig(coalition=3, expected_recipients=4, amplitude=0.001))
        (known,) = vault.bases()

        sentence = refused(lambda: DeepMarksLoss(load(base, BLOCKS - 1), Fingerprint(base, "alice", vault)))
        assert sentence.startswith(
            f"Only 4 of the 24 carriers of base {known.base_id} (40,960 of 245,760 weights) train"
        )
        assert sentence.endswith(
            "of the predicted score, and half is needed: unfreeze more layers, or train without a fingerprint, then "
            "issue a copy of the trained model."
        )
        assert vault.copies() == []
        DeepMarksLoss(load(base, BLOCKS // 2), Fingerprint(base, "alice", vault))

    def test_leaves_alone_what_is_frozen_in_mid_training(self, tmp_path):
        from transformers import AutoModelForImageClassification, Trainer, TrainerCallback, TrainingArguments

        class Freeze(TrainerCallback):
            def on_step_end(self, args, state, control, model=None, **named):
                layer = model.vit.layers[0]
                if state.global_step == 1:
                    layer.requires_grad_(False)
                    model.zero_grad(set_to_none=True)
                    self.kept = [p.detach().clone() for p in layer.parameters()]
                self.now = list(layer.parameters())

        base, vault, freeze = save_vit(tmp_path / "model"), new_vault(tmp_path / "vault"), Freeze()
        call = FingerprintCallback(Fingerprint(base, "alice", vault, SETTINGS))
        model = AutoModelForImageClassification.from_pretrained(base)
        arguments = TrainingArguments(str(tmp_path / "work"), max_steps=3, **QUIET)
        Trainer(model=model, args=arguments, train_dataset=images(), callbacks=[call, freeze]).train()

        assert all(torch.equal(one, other) for one, other in zip(freeze.now, freeze.kept, strict=True))
        assert call.metrics["fingerprint_agreement"] > 0.99


class TestRecording:
    @pytest.fixture
    def fingerprint(self, base, vault):
        return Fingerprint(base, "alice", vault)

    @pytest.fixture
    def out(self, base, fingerprint, tmp_path):
        """A trained model, saved and not yet recorded."""
        return save(by_loss(load(base), fingerprint), tmp_path / "out")

    def test_twice_is_recording_once(self, out, fingerprint, vault):
        first, content = fingerprint.record(out), bytes_of(out)

        assert fingerprint.record(out) == first
        assert bytes_of(out) == content
        (record,) = vault.copies()
        vault.unlock(PASSPHRASE)
        assert record.content_hash == first.content_hash
        assert record.commitment == commitment(vault.copy_key(record), "alice", first.content_hash)

    def test_leaves_no_other_file(self, out, fingerprint):
        before = sorted(bytes_of(out))
        fingerprint.record(out)

        assert sorted(bytes_of(out)) == before

    @pytest.mark.parametrize("at", ["the second file", "the labels", "the vault"])
    def test_goes_on_after_a_crash_in_another_process(self, out, base, fingerprint, vault, tmp_path, monkeypatch, at):
        state = load_file(out / "model.safetensors")
        shards = {"model-1.safetensors": [], "model-2.safetensors": []}
        for name in state:
            shards[f"model-{1 + (name > 'blocks.1')}.safetensors"].append(name)
        for file, names in shards.items():
            save_file({name: state[name] for name in names}, out / file, {"format": "pt"})
        (out / "model.safetensors").unlink()
        weight_map = {name: file for file, names in shards.items() for name in names}
        (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        shutil.copytree(out, tmp_path / "whole")
        place = {
            "the second file": "hf_fingerprint.training.frozen_carriers.rewrite_tensors",
            "the labels": "hf_fingerprint.training.fingerprint.embed_trigger_labels",
            "the vault": "hf_fingerprint.vault.record_store.commitment",
        }[at]

        def cut(path, *rest):
            if at != "the second file" or path.name == "model-2.safetensors":
                raise ZeroDivisionError
            rewrite_tensors(path, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(place, cut)
            with pytest.raises(ZeroDivisionError):
                fingerprint.record(out)
        assert bytes_of(out) != bytes_of(tmp_path / "whole")
        fingerprint._release_lock()
        resumed = Fingerprint(base, "alice", vault)
        resumed.bind(load(base))
        resumed.record(out)
        crashed = bytes_of(out)
        resumed.record(tmp_path / "whole")

        assert crashed == bytes_of(tmp_path / "whole")
        assert [record.state for record in vault.copies()] == ["issued"]

    def test_in_half_precision_rounds_as_issuing_does(self, out, fingerprint, vault, whole_score):
        state = {name: value.bfloat16() for name, value in load_file(out / "model.safetensors").items()}
        save_file(state, out / "model.safetensors", {"format": "pt"})
        recorded = fingerprint.record(out)

        assert {value.dtype for value in tensors(out).values()} == {torch.bfloat16}
        assert recorded.score > 0.9 * whole_score
        content = bytes_of(out)
        fingerprint.record(out)
        assert bytes_of(out) == content

    def test_adds_the_mark_to_weights_that_changed_meanwhile(self, out, fingerprint, whole_score):
        state, generator = load_file(out / "model.safetensors"), torch.Generator().manual_seed(0)
        for name, value in state.items():
            if is_frozen(name) and value.ndim > 1:
                value += 0.02 * value.std() * torch.randn(value.shape, generator=generator)
        save_file(state, out / "model.safetensors", {"format": "pt"})
        recorded, after = fingerprint.record(out), load_file(out / "model.safetensors")

        assert not torch.equal(after["blocks.0.mlp.fc1.weight"], state["blocks.0.mlp.fc1.weight"])
        assert recorded.score > 0.8 * whole_score

    def test_under_the_names_in_memory_finds_them_too(self, out, fingerprint, whole_score, tmp_path):
        state = {f"renamed.{n}": v for n, v in load_file(out / "model.safetensors").items()}
        save_file(state, tmp_path / "renamed.safetensors")

        assert fingerprint.record(tmp_path / "renamed.safetensors").score > 0.9 * whole_score

    def test_of_a_pickle_is_refused(self, out, fingerprint, vault):
        torch.save(load_file(out / "model.safetensors"), out / "pytorch_model.bin")
        (out / "model.safetensors").unlink()

        assert "is pickled, and its frozen carriers need their mark" in refused(lambda: fingerprint.record(out))
        assert vault.copies()[0].state == "begun"

    def test_of_a_lacking_carrier_is_refused(self, out, fingerprint, vault):
        state, name = load_file(out / "model.safetensors"), "blocks.0.mlp.fc1.weight"
        for wrong, word in ((state[name].double(), "holds, as F64, the"), (None, "lacks the")):
            changed = {n: v for n, v in state.items() if n != name} | ({} if wrong is None else {name: wrong})
            save_file(changed, out / "model.safetensors", {"format": "pt"})
            content = bytes_of(out)

            assert f"{word} frozen carrier {name}" in refused(lambda: fingerprint.record(out))
            assert bytes_of(out) == content
        assert vault.copies()[0].state == "begun"

    def test_of_another_model_changes_nothing(self, base, out, fingerprint, tmp_path):
        other = save(load(base), tmp_path / "other")
        content = bytes_of(other)

        assert "does not carry the mark" in refused(lambda: fingerprint.record(other))
        assert bytes_of(other) == content


class TestStages:
    def test_unfrozen_without_a_new_term_carriers_get_their_mark_at_the_end(self, base, vault, tmp_path, whole_score):
        fingerprint, model = Fingerprint(base, "alice", vault), load(base)
        deepmarks = DeepMarksLoss(model, fingerprint)
        model.requires_grad_(True)
        train(model, lambda x, y: torch.nn.functional.cross_entropy(model(x), y) + deepmarks())

        assert fingerprint.record(save(model, tmp_path / "out")).score > 0.8 * whole_score

    def test_frozen_in_a_second_stage_carriers_are_not_marked_again(self, base, vault, tmp_path, whole_score):
        fingerprint = Fingerprint(base, "alice", vault)
        model = by_loss(load(base, 0), fingerprint)
        model.blocks[: BLOCKS // 2].requires_grad_(False)
        saved = tensors(save(by_loss(model, fingerprint), tmp_path / "out"))
        recorded, after = fingerprint.record(tmp_path / "out"), tensors(tmp_path / "out")

        assert all(torch.equal(saved[name], after[name]) for name in saved)
        assert recorded.score > 0.6 * whole_score  # R held the sum of all carriers, and not that of the frozen ones

    def test_unfrozen_in_a_second_stage_carriers_are_trained(self, base, vault, tmp_path, whole_score):
        fingerprint = Fingerprint(base, "alice", vault)
        model = by_loss(load(base), fingerprint).requires_grad_(True)
        saved = tensors(save(by_loss(model, fingerprint), tmp_path / "out"))
        recorded, after = fingerprint.record(tmp_path / "out"), tensors(tmp_path / "out")

        assert all(torch.equal(saved[name], after[name]) for name in saved)
        assert recorded.score > 0.8 * whole_score

    def test_a_recorded_checkpoint_that_trains_on_is_not_marked_again(self, base, vault, tmp_path, whole_score):
        fingerprint = Fingerprint(base, "alice", vault)
        out = save(by_loss(load(base), fingerprint), tmp_path / "out")
        fingerprint.record(out)
        saved = tensors(save(by_loss(load(out), fingerprint, embed=False), tmp_path / "further"))
        recorded = fingerprint.record(tmp_path / "further")

        assert all(torch.equal(value, saved[name]) for name, value in tensors(tmp_path / "further").items())
        assert recorded.score > 0.8 * whole_score


class TestAnIssuedCopy:
    def test_keeps_the_mark_of_its_frozen_carriers(self, base, vault, tmp_path, whole_score):
        issue(base, "bob", vault, tmp_path / "bob")
        fingerprint = Fingerprint(tmp_path / "bob", "bob", vault)
        with said() as warned:
            model = by_loss(load(tmp_path / "bob", BLOCKS - 1), fingerprint)
        saved = tensors(save(model, tmp_path / "out"))
        recorded = fingerprint.record(tmp_path / "out")

        assert [each.endswith("the others keep the mark that they have.") for each in warned] == [True]
        assert all(torch.equal(value, saved[name]) for name, value in tensors(tmp_path / "out").items())
        assert recorded.score > 0.9 * whole_score

    def test_of_which_only_the_head_trains_needs_no_fingerprint(self, base, vault, tmp_path):
        issue(base, "bob", vault, tmp_path / "bob")
        model = load(tmp_path / "bob", BLOCKS)

        assert refused(lambda: DeepMarksLoss(model, Fingerprint(tmp_path / "bob", "bob", vault))).endswith(
            "trains: train without a fingerprint."
        )
