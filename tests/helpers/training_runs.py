"""Trainings that are the same but for how R comes in: by the callback, by hand in the loss, or not at all.

`train` runs one in this process; `launch` runs a list of them in one or several processes of their own, which a
launcher starts (this file is then their script).
"""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, Trainer, TrainerCallback, TrainingArguments

from hf_fingerprint.carriers.projection import keyed_offset
from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.keys import Stream, derive
from hf_fingerprint.registration import register
from hf_fingerprint.training import Fingerprint, FingerprintCallback, FingerprintTrainer
from hf_fingerprint.vault import Vault, begin_training
from tests.helpers.small_models import SETTINGS, WEAK_SETTINGS, save_vit


RECIPIENT = "Ariadne-of-Naxos"
STRENGTH = 0.5
QUIET = {"report_to": [], "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "logging_steps": 1}
USUAL = {"per_device_train_batch_size": 2, "num_train_epochs": 2, "learning_rate": 2e-3, "optim": "sgd"}


def save_transformer(folder: Path) -> Path:
    """A ViT whose matrices don't divide by 2 processes. Without key biases: their gradient is 0 but for rounding,
    which Adam would blow up."""
    from transformers import ViTForImageClassification

    sizes = {"hidden_size": 45, "num_attention_heads": 3, "intermediate_size": 91, "num_hidden_layers": 2}
    return _randomize_biases(save_vit(folder, qkv_bias=False, **sizes), ViTForImageClassification)


def save_cnn(folder: Path) -> Path:
    """A CNN with kernels among its carriers; it takes no loss arguments, so that the Trainer divides its loss. Without
    batch norm, which blows rounding up on batches this small."""
    from transformers import ConvNextConfig, ConvNextForImageClassification

    torch.manual_seed(0)
    config = ConvNextConfig(
        hidden_sizes=[16, 24, 32, 40], depths=[1, 1, 1, 1], layer_scale_init_value=1.0, image_size=32, num_labels=10
    )
    ConvNextForImageClassification(config).save_pretrained(folder)
    return _randomize_biases(folder, ConvNextForImageClassification)


def _randomize_biases(folder: Path, kind: Any) -> Path:
    """Biases that aren't 0, as those of a trained model."""
    model = kind.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


def register_base(folder: Path, vault: Vault) -> Path:
    """Registers a model, so that several processes find the base there, and begins the recipient's copy."""
    with open_checkpoint(folder) as checkpoint:
        begin_training(vault, register(checkpoint, vault, WEAK_SETTINGS), RECIPIENT)
    return folder


def images(count: int = 16, side: int = 32) -> list[dict[str, Any]]:
    """Returns labeled noise, the same each time."""
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randn(count, 3, side, side, generator=generator)
    return [{"pixel_values": pixels[i], "labels": i % 10} for i in range(count)]


class ReferenceTerm:
    """R written from its definition: each weight has a position and a sign, autograd does the rest.

    Args:
        folder (`Path`): the base.
        vault ([`Vault`]): where it is registered, as the only base.
        model (`torch.nn.Module`): the model to train; its frozen parameters are left out.
    """

    def __init__(self, folder: Path, vault: Vault, model: torch.nn.Module):
        (base,) = vault.bases()
        _, key = begin_training(vault, base, RECIPIENT)
        self.bits = torch.from_numpy(base.codebook().codeword(key).astype(np.float32))
        arrays = load_arrays(folder / "model.safetensors")
        fresh = dict(AutoModelForImageClassification.from_pretrained(folder).named_parameters())
        self.parts = {}
        for carrier in base.carriers:
            origin = torch.from_numpy(arrays[carrier.name])
            (name,) = [n for n, p in fresh.items() if p.shape == origin.shape and torch.equal(p.data, origin)]
            if not model.get_parameter(name).requires_grad:
                continue
            stream = Stream(derive(base.secret, "signs", carrier.name)).take(-(-origin.numel() // 8))
            signs = 1 - 2.0 * np.unpackbits(stream)[: origin.numel()]
            offset = keyed_offset(base.secret, carrier.name, base.length)
            positions = (offset + np.arange(origin.numel())) % base.length
            amplitude = torch.tensor(carrier.amplitude).repeat_interleave(origin[0].numel())
            signed = torch.from_numpy(signs.astype(np.float32)) * amplitude
            self.parts[name] = (origin.flatten(), torch.from_numpy(positions), signed)
        self.energy = torch.zeros_like(self.bits)
        for _, positions, signed in self.parts.values():
            self.energy.index_add_(0, positions, signed.square())

    def __call__(self, parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        """`mean((y - b)^2)` with `y = X(a (w - w_ref)) / e`."""
        sums = torch.zeros_like(self.bits)
        for name, (origin, positions, signed) in self.parts.items():
            weights = parameters[name]
            whole = weights.full_tensor() if hasattr(weights, "full_tensor") else weights
            sums = sums.index_add(0, positions, signed * (whole.float().flatten() - origin))
        used = self.energy > 0
        return (sums[used] / self.energy[used] - self.bits[used]).square().mean()

    def embed(self, parameters: dict[str, torch.Tensor]) -> None:
        """`w += a * X^T b`."""
        with torch.no_grad():
            for name, (_, positions, signed) in self.parts.items():
                parameters[name] += (signed * self.bits[positions]).view_as(parameters[name])


class ReferenceTrainer(Trainer):
    """`loss + strength * R`, once per optimizer step: in the last micro-batch of its window."""

    term: ReferenceTerm

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The task's loss, and in a step's last micro-batch R."""
        extra: Any = 0.0
        if model.training and self.accelerator.sync_gradients:
            with torch.autocast("cpu", enabled=False):
                extra = STRENGTH * self.term(plain_parameters(self.model))
            if not (self.model_accepts_loss_kwargs and num_items_in_batch is not None):
                extra = extra * self.current_gradient_accumulation_steps  # the Trainer will divide by it
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return (result[0] + extra, result[1]) if return_outputs else result + extra


class StopAt(TrainerCallback):
    """Breaks a training off."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> Any:
        """Stops after the step."""
        control.should_training_stop = state.global_step >= self.step
        return control


def plain_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Parameters by their plain names."""
    return {name.replace("_orig_mod.", ""): p for name, p in model.named_parameters()}


def train(
    how: str,
    folder: Path,
    vault: Vault,
    out: Path,
    strength: float = STRENGTH,
    embed: bool = False,
    scaler: dict[str, Any] | None = None,
    channels_last: bool = False,
    freeze: int = 0,
    prepare: Any = None,
    callbacks: Any = (),
    resume: Any = None,
    stop_at: int | None = None,
    **arguments: Any,
) -> SimpleNamespace:
    """One training.

    Args:
        how (`str`): "callback", "trainer" (with the fingerprint built in), "by hand" or "plain" (without R).
        scaler (`dict`, *optional*): a gradient scaler's arguments; the forward pass stays in float32.
        freeze (`int`, *optional*): how many blocks of the ViT do not train.
        stop_at (`int`, *optional*): the step after which the training breaks off, its schedule being longer.
        prepare (callable, *optional*): called with the Trainer before it trains.
        **arguments: the TrainingArguments that aren't the usual ones.

    Returns:
        its `weights` by name (`None` but on the first process), `trainer`, `callback` and `fingerprint`.
    """
    options = USUAL | QUIET | arguments
    torch.manual_seed(1)
    settings = TrainingArguments(output_dir=str(out), **options)
    model = AutoModelForImageClassification.from_pretrained(folder)
    if channels_last:
        model.to(memory_format=torch.channels_last)
    if freeze:
        model.vit.layers[:freeze].requires_grad_(False)
    given = {"model": model, "args": settings, "train_dataset": images(), "eval_dataset": images(4)}
    callbacks = [*callbacks, *([] if stop_at is None else [StopAt(stop_at)])]
    fingerprint = callback = None
    if how == "callback":
        fingerprint = Fingerprint(folder, RECIPIENT, vault, SETTINGS)
        callback = FingerprintCallback(fingerprint, strength, embed)
        trainer = Trainer(**given, callbacks=[*callbacks, callback])
    elif how == "trainer":
        fingerprint = Fingerprint(folder, RECIPIENT, vault, SETTINGS)
        trainer = FingerprintTrainer(
            **given, callbacks=callbacks, fingerprint=fingerprint, strength=strength, embed=embed
        )
        callback = trainer.fingerprint_callback
    else:
        trainer = (ReferenceTrainer if how == "by hand" else Trainer)(**given, callbacks=callbacks)
        if how == "by hand":
            trainer.term = ReferenceTerm(folder, vault, model)
            if embed:
                trainer.term.embed(plain_parameters(model))
    if scaler is not None:
        install_scaler(trainer, scaler)
    if prepare is not None:
        prepare(trainer)
    try:
        trainer.train(resume_from_checkpoint=resume)
    finally:
        if fingerprint is not None and fingerprint._lock is not None:
            fingerprint._lock.release()  # the next training of this process is for the same recipient
    weights = gather_weights(trainer.model)
    gc.collect()
    return SimpleNamespace(weights=weights, trainer=trainer, callback=callback, fingerprint=fingerprint)


def install_scaler(trainer: Trainer, options: dict[str, Any]) -> None:
    """A gradient scaler as accelerate has it on an accelerator, without half precision in the forward pass."""
    from accelerate.utils import AutocastKwargs

    accelerator = trainer.accelerator
    accelerator.scaler = torch.amp.GradScaler("cpu", **options)
    accelerator.native_amp = True
    accelerator.state._mixed_precision = "fp16"
    accelerator.autocast_handler = AutocastKwargs(enabled=False)


def gather_weights(model: torch.nn.Module) -> dict[str, torch.Tensor] | None:
    """All of a model's weights, whole, on the first process."""
    found = {}
    for name, parameter in plain_parameters(model).items():
        if hasattr(parameter, "ds_id"):
            import deepspeed

            with deepspeed.zero.GatheredParameters([parameter]):
                value = parameter.detach().clone()
        else:
            whole = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
            value = whole.detach().float().clone()
        found[name.removeprefix("module.")] = value.contiguous()
    return found if int(os.environ.get("RANK", 0)) == 0 else None


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference, relative to the largest weight of its tensor."""
    assert one.keys() == other.keys()
    return max(float((one[n] - other[n]).abs().max() / other[n].abs().max().clamp_min(1e-12)) for n in one)


def relative_drift(
    one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], begin: dict[str, torch.Tensor]
) -> float:
    """The norm of the difference, relative to that of what training changed, over all tensors."""
    apart = sum(float((one[n] - other[n]).double().square().sum()) for n in one)
    moved = sum(float((other[n] - begin[n]).double().square().sum()) for n in one)
    return (apart / moved) ** 0.5


def launch(jobs: list[dict[str, Any]], work: Path, processes: int, **environment: str) -> list[Any]:
    """Runs trainings in processes of their own.

    Returns:
        for each job its weights, or the sentence by which it was refused.
    """
    work.mkdir(parents=True, exist_ok=True)
    jobs = [{**job, "save": str(work / f"weights{i}"), "out": str(work / f"out{i}")} for i, job in enumerate(jobs)]
    (work / "jobs.json").write_text(json.dumps(jobs, default=str))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "ACCELERATE_"))}
    inherited |= {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, __file__, str(work / "jobs.json")],
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[done.stderr.find("Traceback") :][:6000]
    results: list[Any] = []
    for job in jobs:
        refused = Path(job["save"] + ".txt")
        results.append(refused.read_text() if refused.exists() else load_file(job["save"] + ".safetensors"))
    return results


def run_job(job: dict[str, Any]) -> None:
    """One training of `launch`; a fingerprint's refusal is a result too."""
    save, folder, vault = job.pop("save"), Path(job.pop("folder")), Vault(job.pop("vault"))
    first = int(os.environ.get("RANK", 0)) == 0
    try:
        result = train(job.pop("how"), folder, vault, Path(job.pop("out")), **job)
    except FingerprintError as error:
        if first:
            Path(save + ".txt").write_text(str(error))
        return
    if first:
        save_file(result.weights, save + ".safetensors")


def enable_fsdp_on_cpu() -> None:
    """Accelerate ignores FSDP where several processes share CPUs; FSDP2 itself runs there."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    original = AcceleratorState.__init__

    def patched(self: Any, *arguments: Any, fsdp_plugin: Any = None, **named: Any) -> None:
        original(self, *arguments, fsdp_plugin=fsdp_plugin, **named)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = patched


if __name__ == "__main__":
    gc.freeze()  # Trainers collect garbage several times a training
    enable_fsdp_on_cpu()
    for next_job in json.loads(Path(sys.argv[1]).read_text()):
        run_job(next_job)
