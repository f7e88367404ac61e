"""Adversarial removal: the attacker has this library's code and one copy, and lacks only the keys.

Such an attacker knows which tensors are marked, and that each weight moved up or down by a share of its row's root
mean square. The attack moves those weights as far as the outputs allow. To second order, a change d costs
`d^T F d / 2` nats, where F is the Fisher information. The attack therefore moves in random directions, farther where
F is small and in the tensors that the library marks most. After each move it trains the model on the copy's own
outputs, at a fixed distance from the copy, to find the most similar model at that distance.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hf_fingerprint.attacks.attack import Attack, Attacker, State
from hf_fingerprint.attacks.training_loop import cpu_state_dict, kl_divergence, make_optimizer, predict_logits, train
from hf_fingerprint.carriers import select_from_model, spend_budget
from hf_fingerprint.config import MAX_KL
from hf_fingerprint.errors import CarrierError, FingerprintError
from hf_fingerprint.logits import logits_of
from hf_fingerprint.models import for_convolutions


if TYPE_CHECKING:
    import torch

FISHER_BATCHES = 8
DAMPING = 0.1
HALVINGS = 6
ATTEMPTS = 3
MIN_COST = 1e-6
HELD_OUT_PARTS = 4


@dataclass(frozen=True)
class AdversarialRemoval(Attack):
    """Moves the likely carriers by `distance`, or as far as the outputs allow.

    A quarter of the attacker's images is held out to measure the outputs. Labels are not used. Normalization layers
    keep their statistics, so that small distances cost little.

    Args:
        distance (`float`, *optional*, defaults to 0.1): the strength: how far the weights of likely carriers move,
            root mean square, in units of their rows' root mean squares. The mark itself is about 0.004.
        max_kl (`float`, *optional*, defaults to 0.05): the largest mean KL divergence from the copy's outputs, in
            nats. The attack stops where it is spent. `None` sets no limit.
        rounds (`int`, *optional*, defaults to 4): moves outwards.
        repair (`int`, *optional*, defaults to 25): training steps after each move; up to three times as many while
            the outputs still differ too much.
        lr (`float`, *optional*, defaults to 3e-4): AdamW's learning rate.
        seed (`int`, *optional*, defaults to 0): seed of the directions and the order of images.

    Raises:
        [`CarrierError`]: if the model has no likely carriers.
        [`FingerprintError`]: if `distance`, `rounds` or `max_kl` is out of range.
    """

    paper = (
        "after N. Lukas et al., arXiv 2108.04974 (removal by fine-tuning under constraints), and J. Kirkpatrick et "
        "al., arXiv 1612.00796 (the Fisher information shows which weights may move)"
    )
    strengths = (0.01, 0.03, 0.1, 0.2, 0.4, 0.8)
    needs_attacker = True
    distance: float = 0.1
    max_kl: float | None = 0.05
    rounds: int = 4
    repair: int = 25
    lr: float = 3e-4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.distance < 0 or self.rounds < 1 or (self.max_kl is not None and self.max_kl <= 0):
            raise FingerprintError(
                f"AdversarialRemoval got distance {self.distance}, rounds {self.rounds}, max_kl {self.max_kl}: choose "
                "a distance of at least 0, at least 1 round, and a max_kl above 0."
            )

    def __call__(self, state: State, attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        attacker = self.require_attacker(attacker)
        model = attacker.model(state)
        batch, n_held_out = attacker.batch, len(attacker.images) // HELD_OUT_PARTS
        held_out = attacker.images[:n_held_out] if n_held_out else attacker.images
        train_images = attacker.images[n_held_out:]
        expected, held_out_logits = (predict_logits(model, images, batch) for images in (train_images, held_out))
        walk = _CarrierWalk(model, train_images[: FISHER_BATCHES * batch], batch, self.seed)
        reached = cpu_state_dict(model)

        def loss(logits: "torch.Tensor", pick: "torch.Tensor") -> "torch.Tensor":
            return kl_divergence(logits, expected[pick])

        def within_budget() -> bool:
            kl = float(kl_divergence(predict_logits(model, held_out, batch), held_out_logits))
            return math.isfinite(kl) and (self.max_kl is None or kl <= self.max_kl)

        for outer_step in range(self.rounds if self.distance else 0):
            walk.step_to(self.distance * (outer_step + 1) / self.rounds)
            optimizer = make_optimizer(model.parameters(), "adamw", self.lr)
            for attempt in range(ATTEMPTS):
                seed = self.seed + ATTEMPTS * outer_step + attempt
                train(model, attacker, loss, optimizer, self.repair, seed, train_images, walk.project)
                if within_budget():
                    reached = cpu_state_dict(model)
                    break
            else:
                target = cpu_state_dict(model)
                for halving in range(1, HALVINGS + 1):
                    part = {n: _interpolate(tensor, target[n], 0.5**halving) for n, tensor in reached.items()}
                    model.load_state_dict(part)
                    if within_budget():
                        return part
                return reached
        return reached


class _CarrierWalk:
    """A walk of a copy's likely carriers in place. The Fisher information comes from images, `batch` at a time."""

    def __init__(self, model: "torch.nn.Module", images: "torch.Tensor", batch: int, seed: int):
        import torch

        self._generator = torch.Generator().manual_seed(seed)
        parameters = dict(model.named_parameters())
        self._weights = [parameters[name] for name in select_from_model(model, images[:1])]
        if not self._weights:
            raise CarrierError("The model has no likely carriers: choose a model with convolution or linear layers.")
        self._count = sum(weight.numel() for weight in self._weights)
        self._start = [weight.detach().clone() for weight in self._weights]
        self._row_scales = [_row_rms(weight) for weight in self._start]
        self._step_sizes = self._find_steps(model, images, batch)
        self._distance = 0.0

    def step_to(self, distance: float) -> None:
        """Takes one random step to this distance, mostly along directions that hardly change the outputs."""
        import torch

        step_length = math.sqrt(max(distance**2 - self._distance**2, 0.0))
        self._distance = distance
        with torch.no_grad():
            for weight, unit, step_size in zip(self._weights, self._row_scales, self._step_sizes, strict=True):
                noise = torch.randn(weight.shape, generator=self._generator).to(weight.device)
                weight.add_(step_length * noise * step_size * unit)
        self.project()

    def project(self) -> None:
        """Moves the weights along the straight line to the start, to the distance of the last step."""
        import torch

        with torch.no_grad():
            moved = [w - begin for w, begin in zip(self._weights, self._start, strict=True)]
            parts = [(m / unit).square().sum() for m, unit in zip(moved, self._row_scales, strict=True)]
            squared = float(torch.stack(parts).cpu().double().sum())  # together, as a GPU has to be waited for
            scale = self._distance / max(math.sqrt(squared / self._count), 1e-30)
            for weight, begin, change in zip(self._weights, self._start, moved, strict=True):
                weight.copy_(begin + scale * change)

    def _find_steps(self, model: "torch.nn.Module", images: "torch.Tensor", batch: int) -> "list[torch.Tensor]":
        """The step size of each weight, in units of its row's root mean square, with mean square 1.

        Let `S_t` be the cost of moving the n_t weights of tensor t, and `eps_t` the mark's amplitude there, both as
        registration would find them from this copy. If tensors move by `d_t`, a tracer that weights tensors by their
        movement gets `sum_t n_t eps_t^2 / d_t^2`, and the attacker pays `sum_t d_t^2 S_t`. The best choice is
        `d_t^4 = eps_t^2 n_t / S_t`. Within a tensor, steps are proportional to `1 / sqrt(F / mean(F) + damping)`.
        """
        import torch

        fisher = [torch.zeros_like(weight) for weight in self._weights]
        for part in images.split(batch):
            logits = logits_of(model(for_convolutions(part)))
            chance = logits.detach().float().softmax(-1).cpu()
            drawn = torch.multinomial(chance, 1, generator=self._generator).to(part.device)
            score = logits.float().log_softmax(-1).gather(1, drawn)
            sign = 1 - 2 * torch.randint(0, 2, score.shape, generator=self._generator).to(part.device)
            gradients = torch.autograd.grad((score * sign).sum(), self._weights)
            for total, gradient, unit in zip(fisher, gradients, self._row_scales, strict=True):
                total += (gradient * unit).square()
        counts = np.array([weight.numel() for weight in self._weights])
        cost = np.array([float(total.sum()) for total in fisher]) / (2 * len(images))
        cost = np.maximum(cost, MIN_COST * cost.max() + 1e-30)
        distance = np.sqrt(spend_budget(MAX_KL, cost, counts)) * (counts / cost) ** 0.25
        distance /= np.sqrt((counts * distance**2).sum() / counts.sum())
        steps = [(total / total.mean().clamp_min(1e-30) + DAMPING).rsqrt() for total in fisher]
        return [float(d) * step / step.square().mean().sqrt() for d, step in zip(distance, steps, strict=True)]


def _row_rms(weight: "torch.Tensor") -> "torch.Tensor":
    """The root mean square of each row, shaped to multiply the weight; at least a hundredth of the whole tensor's."""
    squares = weight.flatten(1).square().mean(1)
    rms = squares.clamp_min(1e-4 * float(squares.mean()) + 1e-30).sqrt()
    return rms.reshape(-1, *[1] * (weight.ndim - 1))


def _interpolate(start: "torch.Tensor", end: "torch.Tensor", share: float) -> "torch.Tensor":
    return start.lerp(end, share) if start.is_floating_point() else start.clone()
