"""Attacks copies of EfficientNet-Lite0 with real weights and images, and traces them among 1,000 recipients.

Innocents are counted too.
"""

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from safetensors.torch import load_file, save_file

from examples._common.real_inputs import FASHION_MNIST, Images, digits, fashion_mnist, lite0, load_model, save_timm
from examples._common.results import Figure
from examples._common.training import accuracy, fine_tune, predict
from hf_fingerprint import FingerprintConfig, Issuer, Vault
from hf_fingerprint.attacks import Attacker, Cast, FineTuning, MagnitudePruning, Quantization, collude
from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.cli.output import progress_bars
from hf_fingerprint.codes import decode
from hf_fingerprint.extraction import extract
from hf_fingerprint.vault import Base


RECIPIENTS = 1000
INNOCENTS = 50_000
PASSPHRASE = "a passphrase for the benchmark"
State = dict[str, torch.Tensor]


def real_images() -> Images:
    """Returns Fashion-MNIST if Debian's package is installed, else scikit-learn's digits."""
    if FASHION_MNIST.is_dir():
        return Images("Fashion-MNIST", fashion_mnist(True, 20000), fashion_mnist(False, 4000))
    images, labels = digits(56)
    return Images("digits", (images[:1200], labels[:1200]), (images[1200:], labels[1200:]))


def make_base(out: Path, images: Images, steps: int) -> Path:
    """Returns EfficientNet-Lite0, fine-tuned on the images at 56 pixels. Keeps it between runs."""
    folder = out / "base"
    if not folder.exists():
        torch.manual_seed(0)
        model = lite0()
        model.reset_classifier(10)
        for part, lr in enumerate((1e-3, 5e-4, 1e-4)):
            fine_tune(model, *images.train, lr=lr, steps=steps // 3, seed=part, label="the owner trains the base")
        model.pretrained_cfg["input_size"] = (3, 56, 56)
        save_timm(model, folder)
    return folder


class Testbed:
    """A vault with 1,000 recipients, ten of whom have copies, and a decoder for suspects.

    Args:
        out (`Path`): where to work.
        base (`Path`): the base's folder.
    """

    def __init__(self, out: Path, base: Path):
        vault = Vault.create(out / "vault_robustness", PASSPHRASE)
        self.names = [f"recipient-{i}" for i in range(10)]
        with Issuer(base, vault, FingerprintConfig(expected_recipients=RECIPIENTS)) as issuer:
            self.folders = {c.recipient: c.path for c in issuer.issue_all(self.names, out / "copies_robustness")}
            self.base: Base = issuer.base
        vault.unlock(PASSPHRASE)
        self.keys = vault.copy_keys(vault.copies())
        self.codebook = self.base.codebook()
        self.file, self.original = out / "suspect.safetensors", open_checkpoint(base)
        stream = np.random.default_rng(7)
        self.innocents = [stream.bytes(32) for _ in range(INNOCENTS)]
        self.pairs = self.accused_innocents = 0
        self.highest = -math.inf

    def state(self, name: str) -> State:
        """Returns the weights of one recipient's copy."""
        return load_file(self.folders[name] / "model.safetensors")

    def trace_suspect(self, state: State) -> tuple[list[int], np.ndarray]:
        """Traces a suspect among ten recipients and 50,000 innocents, each at the bound for 1,000 recipients.

        Returns:
            `(recipients accused, recipients' scores)`.
        """
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, self.file)
        with open_checkpoint(self.file) as suspect:
            extraction = extract(self.base, self.original, suspect)
        keys = [*self.keys, *self.innocents]
        alpha = self.base.alpha * len(keys) / RECIPIENTS
        found = decode(self.codebook, keys, extraction.values, extraction.mass, alpha)
        accused_recipients = [i for i in found.accused if i < len(self.keys)]
        self.pairs += len(self.innocents)
        self.accused_innocents += len(found.accused) - len(accused_recipients)
        self.highest = max(self.highest, float(found.scores[len(self.keys) :].max()))
        return accused_recipients, found.scores[: len(self.keys)]


def robustness_rows(out: Path, base_steps: int = 300, attacker_steps: int = 100) -> list[Figure]:
    """Returns rows for agreement, single-copy attacks, collusion, and innocents over all of them."""
    images = real_images()
    base = make_base(out, images, base_steps)
    testbed = Testbed(out, base)
    test, labels = images.test
    before, copy = predict(load_model(base), test), load_model(testbed.folders[testbed.names[0]])
    agreement = float((predict(copy, test) == before).double().mean())
    rows = [
        Figure(
            f"top-1 agreement of a default copy with its base, {len(test):,} {images.name} images",
            f"{agreement:.2%}",
            ">= 99.8 %",
        ),
        Figure(
            "accuracy of base / copy",
            f"{float((before == labels).double().mean()):.2%} / {accuracy(copy, test, labels):.2%}",
            "reported",
        ),
    ]
    for what, state in track(
        list(single_attacks(testbed, images, attacker_steps)), "tracing single copies", transient=True
    ):
        accused_recipients, scores = testbed.trace_suspect(state)
        verdict = f"score {scores[0]:.0f}, " + (
            "accused" if accused_recipients == [0] else f"accused: {accused_recipients}"
        )
        rows.append(Figure(f"one copy, {what}", verdict, "accused, nobody else"))
    states = [testbed.state(name) for name in testbed.names]
    for strategy, size, bound in (
        ("average", 5, "all 5, nobody else"),
        ("average", 10, "reported"),
        ("minimum", 10, "reported"),
        ("median", 10, "reported"),
        ("minority", 10, "reported"),
    ):
        accused_recipients, scores = testbed.trace_suspect(collude(states[:size], strategy))
        stray = [i for i in accused_recipients if i >= size]
        verdict = f"{len(accused_recipients) - len(stray)} of {size}, lowest score {scores[:size].min():.0f}"
        rows.append(Figure(f"{strategy} of {size} copies", verdict + (f", wrongly {stray}" if stray else ""), bound))
    wrong = 0
    for _, state in track(
        list(hostile_suspects(testbed, base, out)), "tracing suspects that are no copies", transient=True
    ):
        wrong += len(testbed.trace_suspect(state)[0])
    innocent = f"{testbed.accused_innocents + wrong} of {testbed.pairs:,} pairs, highest score {testbed.highest:.1f}"
    rows.append(
        Figure("innocents accused, over all suspects above and those that are no copies", innocent, "0 of >= 10^6")
    )
    return rows


def single_attacks(testbed: Testbed, images: Images, steps: int) -> Iterator[tuple[str, State]]:
    """Yields the first recipient's copy after each single-copy attack."""
    state = testbed.state(testbed.names[0])
    yield "as issued", state
    build = partial(load_model, testbed.folders[testbed.names[0]])
    for lr in (1e-4, 1e-3):
        with progress_bars() as progress:
            attacker = Attacker(build, *images.train, progress=progress)
            fine_tuned = FineTuning(lr, steps, seed=9)(state, attacker)
        kept = accuracy(attacker.model(fine_tuned), images.test[0][:1000], images.test[1][:1000])
        yield f"AdamW {lr:.0e} for {steps} steps (accuracy {kept:.1%})", fine_tuned
    yield "pruned to 50 %", MagnitudePruning(0.5)(state)
    yield "pruned to 80 %", MagnitudePruning(0.8)(state)
    yield "int8 by tensor", Quantization(8)(state)
    yield "int4 by channel", Quantization(4, by_channel=True)(state)
    yield "cast to bfloat16", Cast("bfloat16")(state)


def hostile_suspects(testbed: Testbed, base: Path, out: Path) -> Iterator[tuple[str, State]]:
    """Yields suspects that descend from no copy, some of them adversarial."""
    base_state = load_file(base / "model.safetensors")
    generator = torch.Generator().manual_seed(3)

    def perturbed(change: str) -> State:
        def apply(tensor: torch.Tensor) -> torch.Tensor:
            if not tensor.is_floating_point() or tensor.ndim < 2:
                return tensor.clone()
            noise = torch.randn(tensor.shape, generator=generator)
            size = tensor.std()
            return {
                "zero": torch.zeros_like(tensor),
                "random": noise * size,
                "noise": tensor + 0.01 * size * noise,
                "signs": tensor + 0.004 * size * noise.sign(),
                "constant": tensor + size,
                "scaled": 1.01 * tensor,
                "negated": -tensor,
                "huge": tensor * 1e6,
                "one row": torch.cat([tensor[:1] + 100 * size, tensor[1:]]),
            }[change]

        return {name: apply(tensor) for name, tensor in base_state.items()}

    yield "the clean base", base_state
    for change in ("zero", "random", "noise", "signs", "constant", "scaled", "negated", "huge", "one row"):
        yield change, perturbed(change)
    other = lite0().state_dict()
    yield "another model", {name: tensor for name, tensor in other.items() if not name.startswith("classifier")}
    with Issuer(
        base, Vault.create(out / "vault_other", PASSPHRASE), FingerprintConfig(expected_recipients=10)
    ) as issuer:
        stranger = issuer.issue("stranger", out / "copy_of_another_vault").path
    theirs = load_file(stranger / "model.safetensors")
    yield "a copy of another vault", theirs
    yield "a copy of another vault, pruned", MagnitudePruning(0.5)(theirs)
    yield "a copy of another vault, quantized", Quantization(8)(theirs)
