"""The Trainer with the callback is the Trainer whose loss has `strength * R` in it, written by hand.

Differences are relative to the largest weight of the tensor, and, looser since float32 rounds weights that hardly
move, to what training changed.
"""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForImageClassification, TrainerCallback, TrainerState, TrainingArguments
from transformers.integrations import (
    HfDeepSpeedConfig,
    deepspeed_config,
    is_deepspeed_zero3_enabled,
    unset_hf_deepspeed_config,
)

from hf_fingerprint.training import Fingerprint, FingerprintCallback
from hf_fingerprint.training.trainer import _without_zero3_init
from tests.helpers.small_models import new_vault
from tests.helpers.training_runs import (
    QUIET,
    ReferenceTerm,
    difference,
    gather_weights,
    plain_parameters,
    register_base,
    relative_drift,
    save_cnn,
    save_transformer,
    train,
)


pytestmark = pytest.mark.integration
OF_WEIGHTS, OF_CHANGE = 1e-6, 5e-5
# a fine-tuning's rate: at 1e-3 Adam blows up the rounding of gradients near 0 to 7e-6 in a step or two
ADAM = {"optim": "adamw_torch", "learning_rate": 1e-4, "adam_epsilon": 1e-6}
WINDOWS = {"gradient_accumulation_steps": 3}  # 8 micro-batches: the last window of an epoch has 2
BITES = {"max_grad_norm": 0.05, "learning_rate": 0.05}
BOTH = {
    "each batch a step": {},
    "accumulation": WINDOWS,
    "accumulation, clipping off": WINDOWS | {"max_grad_norm": 0.0},
    "accumulation, clipping that bites": WINDOWS | BITES,
    "AdamW and accumulation": WINDOWS | ADAM,
    "scaler and accumulation": WINDOWS | {"scaler": {"init_scale": 1024.0, "growth_interval": 2}},
    "mark put in": WINDOWS | {"embed": True},
}
TRANSFORMER = {
    "AdamW": ADAM,
    "scaler and clipping that bites": BITES | {"scaler": {"init_scale": 1024.0, "growth_interval": 2}},
    "activation checkpointing, reentrant": WINDOWS
    | {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    "activation checkpointing, not reentrant": WINDOWS
    | {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
    "compiled": WINDOWS | {"torch_compile": True, "torch_compile_backend": "aot_eager", "num_train_epochs": 1},
    "momentum over three epochs": WINDOWS | {"num_train_epochs": 3, "optim_args": "momentum=0.9"},
}
CNN = {"channels_last": WINDOWS | {"channels_last": True}}
# others hold the same with one more thing on top
SLOW = {"accumulation", "accumulation, clipping off", "AdamW", "scaler and accumulation", "compiled"}
SLOW |= {"momentum over three epochs", "activation checkpointing, reentrant"}


def cases(names):
    return [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in names]


BF16 = WINDOWS | {"bf16": True}


def ready(folder, save):
    model, vault = save(folder / "model"), new_vault(folder / "vault")
    register_base(model, vault)
    begin = gather_weights(AutoModelForImageClassification.from_pretrained(model))
    return SimpleNamespace(model=model, vault=vault, begin=begin, out=folder / "out")


@pytest.fixture(scope="module")
def transformer(tmp_path_factory):
    """A registered ViT."""
    return ready(tmp_path_factory.mktemp("transformer"), save_transformer)


@pytest.fixture(scope="module")
def cnn(tmp_path_factory):
    """A registered ConvNeXt."""
    return ready(tmp_path_factory.mktemp("cnn"), save_cnn)


def run(base, how, **options):
    return train(how, base.model, base.vault, base.out, **options)


def assert_same(base, options):
    called, written = run(base, "callback", **options), run(base, "by hand", **options)

    assert difference(called.weights, written.weights) <= OF_WEIGHTS
    assert relative_drift(called.weights, written.weights, base.begin) <= OF_CHANGE
    return called


@pytest.mark.parametrize("case", cases(BOTH | TRANSFORMER))
def test_a_transformer_ends_where_the_loss_written_by_hand_takes_it(transformer, case):
    assert_same(transformer, (BOTH | TRANSFORMER)[case])


@pytest.mark.parametrize("case", cases(BOTH | CNN))
def test_a_cnn_ends_where_the_loss_written_by_hand_takes_it(cnn, case):
    assert_same(cnn, (BOTH | CNN)[case])


class Held(TrainerCallback):
    """Keeps the weights that each step ends with; or, given another training's, measures how far each step ends from
    them and puts them in, since bf16 makes a large difference of one in the last place, on some processors."""

    def __init__(self, other=None):
        self.other, self.steps, self.apart = other, [], []

    def on_step_end(self, args, state, control, model=None, **named):
        self.steps.append(gather_weights(model))
        if self.other is not None:
            there = self.other.steps[len(self.steps) - 1]
            self.apart.append(difference(self.steps[-1], there))
            with torch.no_grad():
                for name, parameter in plain_parameters(model).items():
                    parameter.copy_(there[name])


def steps_apart(base, how, **options):
    called = Held()
    run(base, "callback", callbacks=[called], **options)
    other = Held(called)
    run(base, how, callbacks=[other], **options)
    assert len(other.apart) == len(called.steps) == 6
    return max(other.apart)


@pytest.mark.parametrize("name", ["transformer", pytest.param("cnn", marks=pytest.mark.slow)])
def test_in_bf16_each_step_ends_where_the_loss_written_by_hand_takes_it(name, request):
    base = request.getfixturevalue(name)

    assert steps_apart(base, "by hand", **BF16) <= OF_WEIGHTS
    assert steps_apart(base, "plain", **BF16) > 100 * OF_WEIGHTS


@pytest.mark.parametrize("name", ["transformer", "cnn"])
def test_the_comparison_sees_a_term_that_is_missing_or_of_another_strength(name, request):
    base = request.getfixturevalue(name)
    options = WINDOWS | {"max_grad_norm": 0.0}
    written = run(base, "by hand", **options)

    for other in (run(base, "plain", **options), run(base, "callback", strength=0.55, **options)):
        assert difference(other.weights, written.weights) > 100 * OF_WEIGHTS
        assert relative_drift(other.weights, written.weights, base.begin) > 20 * OF_CHANGE


def test_a_step_that_overflows_is_skipped_with_its_term(transformer):
    scaler = {"init_scale": 2.0**127, "backoff_factor": 2.0**-110, "growth_interval": 100}

    called = assert_same(transformer, {"scaler": scaler})

    assert called.trainer.accelerator.scaler.get_scale() == 2.0**17
    assert called.trainer.state.log_history[1]["fingerprint_loss"] == pytest.approx(1.0, abs=1e-4)


def test_windows_of_an_unfinished_length_carry_the_term_once(transformer):
    class Stream(torch.utils.data.IterableDataset):
        def __init__(self, rows):
            self.rows = rows

        def __iter__(self):
            return iter(self.rows)

    def stream(trainer):
        trainer.train_dataset = Stream(trainer.train_dataset)

    options = WINDOWS | {"max_steps": 5, "prepare": stream}
    called, written = run(transformer, "callback", **options), run(transformer, "by hand", **options)

    assert difference(called.weights, written.weights) <= OF_WEIGHTS


def test_a_layer_that_is_skipped_gets_its_term_before_clipping(transformer):
    def skip_a_layer(trainer):
        layers = [m for m in trainer.model.modules() if type(m).__name__ == "ViTLayer"]
        layers[1].forward = lambda hidden, *arguments, **named: hidden

    assert_same(transformer, WINDOWS | BITES | {"prepare": skip_a_layer})


def test_training_twice_with_one_callback_adds_the_term_once_each(transformer):
    def train_before(trainer):
        trainer.args.max_steps = 2
        trainer.train()
        trainer.args.max_steps = -1

    assert_same(transformer, {"prepare": train_before})


def test_the_mark_put_in_reads_as_all_of_its_bits_from_the_first_step(transformer):
    held = run(transformer, "callback", embed=True, **WINDOWS)
    history = [log for log in held.trainer.state.log_history if "loss" in log]

    assert [log["fingerprint_agreement"] for log in history] == [1.0] * len(history)
    assert history[0]["fingerprint_loss"] < 1e-6
    assert held.callback.metrics["fingerprint_loss"] < 0.05


def test_a_resumed_training_is_marked_anew_only_if_its_mark_was_not_loaded(transformer):
    model = AutoModelForImageClassification.from_pretrained(transformer.model)
    fingerprint = Fingerprint(transformer.model, "resumed", transformer.vault)
    arguments = TrainingArguments(output_dir=str(transformer.out), **QUIET)

    def resume():
        callback = FingerprintCallback(fingerprint)
        callback.on_train_begin(arguments, TrainerState(global_step=5), None, model=model)
        callback.on_train_end(arguments, TrainerState(global_step=5), None)
        return callback.metrics

    assert resume() == pytest.approx({"fingerprint_loss": 0.0, "fingerprint_agreement": 1.0}, abs=1e-6)
    with torch.no_grad():
        for carrier in fingerprint.bind(model).parameters.values():
            carrier += 1e-4 * torch.randn_like(carrier)
    drifted = gather_weights(model)

    assert 1e-5 < resume()["fingerprint_loss"] < 1.0
    assert difference(gather_weights(model), drifted) == 0.0


def test_what_the_log_says_is_R_at_the_start_of_the_step(transformer):
    seen = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **named):
            seen.append(
                float(ReferenceTerm(transformer.model, transformer.vault, model)(plain_parameters(model)).detach())
            )

    result = run(transformer, "callback", callbacks=[Watch()], max_steps=3)
    logged = [log["fingerprint_loss"] for log in result.trainer.state.log_history if "loss" in log]

    assert logged == pytest.approx(seen, rel=1e-4)
    assert seen[0] > seen[1] > seen[2]


class Recorder(TrainerCallback):
    """The logs that a reporter before the user's callbacks gets."""

    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs=None, **named):
        self.logs.append(dict(logs))


def test_every_reporter_and_the_history_get_both_metrics(transformer, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first, last = Recorder(), Recorder()

    def report(trainer):
        trainer.callback_handler.callbacks.insert(0, first)
        trainer.add_callback(last)

    base = SimpleNamespace(**vars(transformer) | {"out": tmp_path / "out"})
    result = run(
        base, "callback", prepare=report, report_to=["tensorboard"], eval_strategy="steps", eval_steps=2, max_steps=4
    )
    (events,) = (tmp_path / "out").rglob("events.out.tfevents.*")
    scalars = EventAccumulator(str(events.parent))
    scalars.Reload()

    trained = [log for log in result.trainer.state.log_history if "loss" in log]
    assert len(trained) == 4
    for name in ("fingerprint_loss", "fingerprint_agreement"):
        expected = [log[name] for log in trained]
        assert all(type(value) is float for value in expected)
        assert [log[name] for log in first.logs if "loss" in log] == expected
        assert [log[name] for log in last.logs if "loss" in log] == expected
        assert [event.value for event in scalars.Scalars(f"train/{name}")] == pytest.approx(expected, rel=1e-6)
    others = [log for log in first.logs + result.trainer.state.log_history if "loss" not in log]
    assert sum("eval_loss" in log for log in others) == 4
    assert not any("fingerprint" in name for log in others for name in log)


def test_zero_3_is_off_while_the_base_is_built_and_on_again_afterwards(transformer):
    callback = FingerprintCallback(Fingerprint(transformer.model, "zero", transformer.vault), embed=False)
    config = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})
    try:
        with _without_zero3_init(callback):
            assert not is_deepspeed_zero3_enabled()
        assert is_deepspeed_zero3_enabled()
        assert deepspeed_config() == config.config
    finally:
        unset_hf_deepspeed_config()
    with _without_zero3_init(callback):
        assert deepspeed_config() is None
    assert deepspeed_config() is None


def test_evaluation_is_that_of_the_task_alone(transformer):
    result = run(transformer, "callback", max_steps=1, learning_rate=0.0)
    with torch.no_grad():
        rows = result.trainer.eval_dataset
        inputs = {"pixel_values": torch.stack([r["pixel_values"] for r in rows])}
        loss = result.trainer.model(**inputs, labels=torch.tensor([r["labels"] for r in rows])).loss

    assert result.trainer.evaluate()["eval_loss"] == pytest.approx(float(loss), rel=1e-5)


def test_after_training_no_hook_is_left_on_the_model(transformer):
    result = run(transformer, "callback", max_steps=1)

    for parameter in result.trainer.model.parameters():
        assert not parameter._backward_hooks
        assert not parameter._post_accumulate_grad_hooks


def test_the_callback_can_be_added_to_a_trainer_that_exists(transformer):
    fingerprint = Fingerprint(transformer.model, "late", transformer.vault)
    callback = FingerprintCallback(fingerprint, embed=False)

    result = run(transformer, "plain", prepare=lambda trainer: trainer.add_callback(callback), max_steps=2)

    assert result.trainer.state.log_history[0]["fingerprint_agreement"] < 0.5
    assert callback.metrics["fingerprint_agreement"] == 1.0
    assert callback.metrics["fingerprint_loss"] < result.trainer.state.log_history[0]["fingerprint_loss"]
