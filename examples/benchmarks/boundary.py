"""Measures a second black-box channel, which was not adopted: images on a base's decision boundary.

Untouched copies differ there by their weight marks alone. To first order a copy's margin at an image is the base's
plus `<G, b>`, with b the copy's codeword and G the gradient of the margin by b. So responses to many images give a
score that is linear in b, with the same proof as an extracted signal. Raw responses are correlated between images;
they are whitened by `G G^T`. From labels alone, the most likely margins given their signs are used (a probit
regression). The table also has the score needed among 1,000 recipients at alpha 1e-6, and the highest score of
never-issued keys.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from scipy.stats import norm

from examples._common.real_inputs import fashion_mnist
from examples._common.results import Table, add_results_option, report
from examples.benchmarks.blackbox import PASSPHRASE, SIZE, Setting, State, fashion, make_base
from hf_fingerprint import FingerprintConfig, Vault
from hf_fingerprint.attacks import Quantization
from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.keys import new_secret
from hf_fingerprint.models import BuiltModel, build_model
from hf_fingerprint.registration import register
from hf_fingerprint.training.model_carriers import locate_carriers
from hf_fingerprint.training.regularizer import parameter_locations


HALVINGS, MIN_MARGIN = 16, 0.5  # bisections between two images; logits between second and third class
RECIPIENTS, ALPHA = 1000, 1e-6


def to_image(image: np.ndarray) -> Image.Image:
    """Returns pixel values as an 8-bit image."""
    return Image.fromarray(np.clip(np.rint(image), 0, 255).astype(np.uint8))


def boundary_images(built: BuiltModel, images: np.ndarray, count: int) -> tuple[torch.Tensor, np.ndarray]:
    """Returns mixtures of two images on the decision boundary of the base, and the two classes of each."""

    def outputs(image: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        shown = built.preprocess(to_image(image))
        with torch.no_grad():
            return shown, built.module(shown[None])[0]

    rng, inputs, pairs = np.random.default_rng(0), [], []
    for _ in track(range(count), description="boundary images", transient=True):
        while True:
            one, other = (images[i].astype(float) for i in rng.integers(len(images), size=2))
            dither, low, high, first = rng.uniform(-0.5, 0.5, one.shape), 0.0, 1.0, outputs(one)[1].argmax()
            if outputs(other)[1].argmax() == first:
                continue
            for _ in range(HALVINGS):
                middle = (low + high) / 2
                shown, logits = outputs(one * (1 - middle) + other * middle + dither)
                low, high = (middle, high) if logits.argmax() == first else (low, middle)
            best = logits.topk(3)
            if best.values[1] - best.values[2] > MIN_MARGIN:
                inputs.append(shown)
                pairs.append(best.indices[:2].numpy())
                break
    return torch.stack(inputs), np.stack(pairs)


def margins(module: torch.nn.Module, inputs: torch.Tensor, pairs: np.ndarray) -> torch.Tensor:
    """Returns the logit margin of the first class over the second for each image, `float64`."""
    with torch.no_grad():
        logits = module(inputs).double()
    rows = torch.arange(len(inputs))
    return logits[rows, pairs[:, 0]] - logits[rows, pairs[:, 1]]


def most_likely_margins(
    signs: torch.Tensor, plain: torch.Tensor, gram: torch.Tensor, noise_scale: float
) -> torch.Tensor:
    """Returns the most likely change of a copy's margins from the base's, given their signs, shape `(n,)`."""
    root = torch.linalg.cholesky(gram + 1e-9 * gram.diagonal().mean() * torch.eye(len(gram)))
    drawn = torch.zeros(len(signs), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([drawn], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        lost = drawn.square().sum() / 2 - torch.special.log_ndtr(signs * (plain + root @ drawn) / noise_scale).sum()
        lost.backward()
        return lost

    optimizer.step(loss)
    return (root @ drawn).detach()


class Testbed:
    """A registered base, the gradients of its margins by the codeword, and copies made in memory."""

    def __init__(self, base: Path, out: Path, images: np.ndarray, count: int):
        record = register(base, Vault.create(out / f"vault_{new_secret().hex()[:8]}", PASSPHRASE), FingerprintConfig())
        self.codebook = record.codebook()
        with open_checkpoint(base) as checkpoint:
            self.built = build_model(checkpoint)
            places = parameter_locations(self.built.module)
            shapes = {name: tuple(getattr(*place).shape) for name, place in places.items()}
            self.maps = locate_carriers(record, checkpoint, shapes).maps()
        self.carriers = {name: getattr(*places[name]) for name in self.maps}
        self.base = {name: carrier.detach().clone() for name, carrier in self.carriers.items()}
        self.inputs, self.pairs = boundary_images(self.built, images, count)
        self.plain = margins(self.built.module, self.inputs, self.pairs)
        self.gradients = torch.zeros(count, record.length)
        for row, (shown, pair) in enumerate(zip(self.inputs, self.pairs, strict=True)):
            logits = self.built.module(shown[None])[0]
            slopes = torch.autograd.grad(logits[pair[0]] - logits[pair[1]], list(self.carriers.values()))
            for part, slope in zip(self.maps.values(), slopes, strict=True):
                part.read(slope.flatten(1), 0, self.gradients[row])
        self.gram = (self.gradients @ self.gradients.T).double()
        self.innocents = torch.stack([self.codeword(new_secret()) for _ in range(3000)])

    def codeword(self, key: bytes) -> torch.Tensor:
        """Returns a key's codeword, +1 and -1."""
        return torch.from_numpy(np.asarray(self.codebook.codeword(key), np.float32))

    def margins_of(self, codeword: torch.Tensor, attack: Callable[[State], State]) -> torch.Tensor:
        """Returns the margins of a copy after an attack."""
        marked = {}
        with torch.no_grad():
            for name, part in self.maps.items():
                mark = torch.zeros_like(self.base[name]).flatten(1)
                part.adjoint(codeword, 0, mark)
                marked[name] = self.base[name] + mark.reshape(self.base[name].shape)
            for name, weight in attack(marked).items():
                self.carriers[name].copy_(weight)
        return margins(self.built.module, self.inputs, self.pairs)

    def scores(self, codeword: torch.Tensor, logit_shift: torch.Tensor, ridge: float) -> tuple[float, float]:
        """Returns the copy's score and the highest of never-issued keys, in standard deviations of the latter."""
        regularized_gram = self.gram + ridge * self.gram.diagonal().mean() * torch.eye(len(logit_shift))
        weights = (self.gradients.double().T @ torch.linalg.solve(regularized_gram, logit_shift)).float()
        others = self.innocents @ weights
        return tuple(float((score - others.mean()) / others.std()) for score in (codeword @ weights, others.max()))  # type: ignore[return-value]


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench_output/boundary"), help="where to work")
    parser.add_argument("--triggers", type=int, default=200, help="number of boundary images")
    parser.add_argument("--copies", type=int, default=12)
    parser.add_argument("--steps", type=int, default=300, help="training steps of the base")
    add_results_option(parser)
    chosen = parser.parse_args(arguments)
    chosen.out.mkdir(parents=True, exist_ok=True)
    if not (chosen.out / "base").exists():
        make_base(chosen.out / "base", fashion(Setting()), chosen.steps)
    images = (fashion_mnist(False, 4000, SIZE)[0] * 127.5 + 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    testbed = Testbed(chosen.out / "base", chosen.out, images, chosen.triggers)
    rows = []
    for name, attack in (("untouched", dict), ("int8", Quantization(8))):
        found: dict[str, list[tuple[float, float]]] = {"labels": [], "logits": []}
        for _ in range(chosen.copies):
            codeword = testbed.codeword(new_secret())
            copy_margins = testbed.margins_of(codeword, attack)
            logit_shift = copy_margins - testbed.plain
            signs = most_likely_margins(
                copy_margins.sign(), testbed.plain, testbed.gram, float(logit_shift.std()) / 10
            )
            found["labels"].append(testbed.scores(codeword, signs, 1e-6))
            found["logits"].append(testbed.scores(codeword, logit_shift, 1e-3))
        for outputs, scores in found.items():
            own, others = np.array(scores).T
            rows.append((name, outputs, *(f"{figure:.1f}" for figure in (own.mean(), own.min(), others.max()))))
    columns = ("copies", "responses", f"own score, mean of {chosen.copies}", "least", "highest of 3,000 never issued")
    note = f"The score that accuses one of {RECIPIENTS:,}: {norm.isf(ALPHA / RECIPIENTS):.1f}."
    report(chosen, [Table("boundary", "", columns, tuple(rows), (note,))])
    return 0


if __name__ == "__main__":
    sys.exit(main())
