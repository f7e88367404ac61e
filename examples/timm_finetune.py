"""Trains a recipient's mark with timm's own loop: its task, EMA, gradient accumulation and clipping.

A small ResNet, trained on handwritten digits, becomes the base. It is then trained further for alice, as in timm's
train.py. The exponential moving average is saved as an ordinary timm folder, recorded, and traced among copies issued
to other recipients.
"""

import argparse
from pathlib import Path

import timm
import torch
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.task import ClassificationTask

from examples._common.owner import RECIPIENT, empty_folder, expect_trace, make_owner_vault
from examples._common.real_inputs import digits, load_model, save_timm
from examples._common.training import accuracy, fine_tune
from hf_fingerprint.training import Fingerprint, FingerprintedModel, FingerprintTask


def main() -> None:
    """Runs the example; the exit code is 0 if the trace names alice and nobody else."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("timm_output"))
    parser.add_argument("--model", default="test_resnet", help="a timm architecture")
    parser.add_argument("--size", type=int, default=64, help="height and width of the images")
    parser.add_argument(
        "--steps", type=int, default=20, help="steps of the second training; the first takes twice as many"
    )
    parser.add_argument("--strength", type=float, default=0.1, help="the factor of the fingerprint term in the loss")
    arguments = parser.parse_args()
    out = empty_folder(arguments.out)
    images, labels = digits(arguments.size)
    train, test = (images[:1500], labels[:1500]), (images[1500:], labels[1500:])

    print(f"1. The base: {arguments.model}, trained for a few steps\n")
    torch.manual_seed(0)
    model = timm.create_model(arguments.model, num_classes=10)
    fine_tune(model, *train, lr=1e-3, steps=2 * arguments.steps, batch=16, label="the owner trains the base")
    print(f"  accuracy {accuracy(model, *test):.1%}")
    base = save_timm(model, out / "base")
    vault = make_owner_vault(base, out)

    print(f"\n2. Trained further for {RECIPIENT}\n")
    fingerprint = Fingerprint(base, RECIPIENT, vault)
    plain = load_model(base).train()
    model = FingerprintedModel(plain, fingerprint, arguments.strength)
    average = train_with_timm(model, *train, arguments.steps)
    print(f"  accuracy {accuracy(average, *test):.1%}")
    trained = save_timm(average.export(), out / "trained")
    recorded = fingerprint.record(trained)
    print(f"  recorded: {recorded.path}, score {recorded.score:.1f}, {recorded.agreement:.1%} of the bits\n")

    print("3. It leaks\n")
    expect_trace(trained, vault)


def train_with_timm(
    model: FingerprintedModel, images: torch.Tensor, labels: torch.Tensor, steps: int, accumulation: int = 2
) -> FingerprintedModel:
    """Trains with timm's task, accumulation and clipping, and returns the exponential moving average."""
    task = FingerprintTask(ClassificationTask(model, LabelSmoothingCrossEntropy(0.1), verbose=False), model.deepmarks)
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.02)
    ema = task.setup_ema(decay=0.9)
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        for _ in range(accumulation):
            pick = torch.randint(len(images), (16,), generator=generator)
            result = task(images[pick], labels[pick])
            (result["loss"] / accumulation).backward()
        torch.nn.utils.clip_grad_norm_(task.get_clip_parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        task.update_ema(step)
        if step % max(1, steps // 4) == 0:
            figures = {name: float(result[name].detach()) for name in result if name != "output"}
            print(f"  step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
    print(f"  the moving average: {ema.module.metrics['fingerprint_agreement']:.1%} of the bits")
    return ema.module


if __name__ == "__main__":
    main()
