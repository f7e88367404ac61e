"""Trains a recipient's mark with an unmodified transformers Trainer: add one entry to `callbacks`.

A small ViT, trained on handwritten digits, becomes the base. A Trainer with `FingerprintCallback` then trains it
further for alice. The saved folder is recorded, and traced among copies issued to other recipients.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments, ViTConfig
from transformers.utils import logging

from examples._common.owner import RECIPIENT, empty_folder, expect_trace, make_owner_vault
from examples._common.real_inputs import digits, load_model
from hf_fingerprint.training import Fingerprint, FingerprintCallback


SMALL = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256}


def main() -> None:
    """Runs the example; the exit code is 0 if the trace names alice and nobody else."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("trainer_output"))
    parser.add_argument("--steps", type=int, default=40, help="steps of each training")
    parser.add_argument("--strength", type=float, default=0.1, help="the factor of the fingerprint term in the loss")
    arguments = parser.parse_args()
    out = empty_folder(arguments.out)
    logging.disable_progress_bar()
    images, labels = digits(32)
    data = [{"pixel_values": image, "labels": label} for image, label in zip(images, labels, strict=True)]

    print("1. The base: a small ViT, trained for a few steps\n")
    torch.manual_seed(0)
    config = ViTConfig(**SMALL, image_size=32, patch_size=8, num_labels=10)
    base = make_trainer(AutoModelForImageClassification.from_config(config), data, out, arguments.steps)
    base.train()
    base.save_model(out / "base")
    vault = make_owner_vault(out / "base", out)

    print(f"\n2. Trained further for {RECIPIENT}\n")
    fingerprint = Fingerprint(out / "base", RECIPIENT, vault)
    callback = FingerprintCallback(fingerprint, arguments.strength)
    model = load_model(out / "base")
    trainer = make_trainer(model, data, out, arguments.steps, [callback])
    trainer.train()
    trainer.save_model(out / "trained")
    for entry in trainer.state.log_history:
        if "fingerprint_loss" in entry:
            figures = ("loss", "fingerprint_loss", "fingerprint_agreement")
            print(f"  step {entry['step']}: " + ", ".join(f"{name} {entry[name]:.4g}" for name in figures))
    recorded = fingerprint.record(out / "trained")
    print(f"  recorded: {recorded.path}, score {recorded.score:.1f}, {recorded.agreement:.1%} of the bits\n")

    print("3. It leaks\n")
    expect_trace(out / "trained", vault)


def make_trainer(
    model: torch.nn.Module, data: list[dict[str, torch.Tensor]], out: Path, steps: int, callbacks: list | None = None
) -> Trainer:
    """Returns an ordinary Trainer."""
    training_arguments = TrainingArguments(
        output_dir=str(out / "checkpoints"),
        max_steps=steps,
        per_device_train_batch_size=32,
        learning_rate=1e-3,
        logging_steps=max(1, steps // 4),
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    return Trainer(model=model, args=training_arguments, train_dataset=data, callbacks=callbacks)


if __name__ == "__main__":
    main()
