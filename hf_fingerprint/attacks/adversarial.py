"""Adversarial removal: a thief who has this library's code and one copy, and lacks only the keys.

He knows which tensors are marked and that each weight moved by some share of its row's root mean square, either way.
What he can do is move those weights as far as the outputs allow. To second order a change d costs `d^T F d / 2` nats,
F being the Fisher information, so he goes where F is small, in random directions, farthest in the tensors that the
library marks most, and repairs what that costs by teaching the model the copy's own answers, at the distance reached:
of all models so far from the copy, the one that answers most alike.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hf_fingerprint.attacks.attack import Attack, Attacker, logits
from hf_fingerprint.attacks.training_loop import cpu_state_dict, kl_divergence, make_optimizer, predict_logits, train
from hf_fingerprint.carriers import select_from_model, spend_budget
from hf_fingerprint.config import MAX_KL
from hf_fingerprint.errors import CarrierError, FingerprintError


if TYPE_CHECKING:
    import torch

    from hf_fingerprint.attacks.attack import State

FISHER_BATCHES = 8
DAMPING = 0.1
HALVINGS = 6
ATTEMPTS = 3
MIN_COST = 1e-6
HELD_OUT_PARTS = 4


@dataclass(frozen=True)
class AdversarialRemoval(Attack):
    """Moves the likely carriers as far as asked, or as far as the outputs allow.

    A quarter of the thief's images is held back to measure the outputs on. Labels aren't used, and normalisations
    keep their statistics, so that a short way costs little.

    Args:
        distance (`float`, *optional*, defaults to 0.1): the strength: how far the weights of likely carriers shall
            move, root mean square, in units of their rows' root mean squares; the mark itself is some 0.004.
        max_kl (`float`, *optional*, defaults to 0.05): the largest mean KL divergence, in nats, from the copy's
            answers; the way ends where it's spent. `None` goes all the way at any price.
        rounds (`int`, *optional*, defaults to 4): steps outwards.
        repair (`int`, *optional*, defaults to 25): steps of training after each; up to three times as many where
            the answers are still too different.
        lr (`float`, *optional*, defaults to 3e-4): AdamW's learning rate in them.
        seed (`int`, *optional*, defaults to 0): of directions and the order of images.

    Raises:
        [`CarrierError`]: if the model has no likely carriers.
    """

    paper = (
        "after N. Lukas et al., arXiv 2108.04974 (removal by fine-tuning under constraints), and J. Kirkpatrick et "
        "al., arXiv 1612.00796 (the Fisher information tells which weights may move)"
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
                f"{self.rounds} rounds to {self.distance} within {self.max_kl} nats lead nowhere: choose a distance "
                "of 0 or more, 1 round or more, and a KL above 0."
            )

    def __call__(self, state: "State", attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        attacker = self.require_attacker(attacker)
        model = attacker.model(state)
        n_held_out = len(attacker.images) // HELD_OUT_PARTS
        held_out, train_images = (
            attacker.images[:n_held_out] if n_held_out else attacker.images,
            attacker.images[n_held_out:],
        )
        expected, held_out_logits = (
            predict_logits(model, train_images, attacker.batch),
            predict_logits(model, held_out, attacker.batch),
        )
        walk = _CarrierWalk(model, train_images[: FISHER_BATCHES * attacker.batch], attacker.batch, self.seed)
        reached = cpu_state_dict(model)

        def loss(student_logits: "torch.Tensor", pick: "torch.Tensor") -> "torch.Tensor":
            return kl_divergence(student_logits, expected[pick])

        def within_budget() -> bool:
            kl = float(kl_divergence(predict_logits(model, held_out, attacker.batch), held_out_logits))
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
    """Where the likely carriers began, which way is open to them, and how far they are.

    Args:
        model (`torch.nn.Module`): the copy.
        images (`torch.Tensor` of shape `(n, channels, height, width)`): to estimate the Fisher information on.
        batch (`int`): images at a time.
        seed (`int`): of directions.
    """

    def __init__(self, model: "torch.nn.Module", images: "torch.Tensor", batch: int, seed: int):
        import torch

        self._generator = torch.Generator().manual_seed(seed)
        parameters = dict(model.named_parameters())
        self._weights = [parameters[name] for name in select_from_model(model, images[:1])]
        if not self._weights:
            raise CarrierError("The model has no likely carriers: there is nothing to remove a mark from.")
        self._count = sum(weight.numel() for weight in self._weights)
        self._start = [weight.detach().clone() for weight in self._weights]
        self._row_scales = [_row_rms(weight) for weight in self._start]
        self._step_sizes = self._compute_step_sizes(model, images, batch)
        self._distance = 0.0

    def step_to(self, distance: float) -> None:
        """One random step to this distance, along what the outputs hardly notice."""
        import torch

        step_length = math.sqrt(max(distance**2 - self._distance**2, 0.0))
        self._distance = distance
        with torch.no_grad():
            for weight, unit, step_size in zip(self._weights, self._row_scales, self._step_sizes, strict=True):
                noise = torch.randn(weight.shape, generator=self._generator).to(weight.device)
                weight.add_(step_length * noise * step_size * unit)
        self.project()

    def project(self) -> None:
        """Puts the weights back to the distance reached, on the straight line to where they began."""
        import torch

        with torch.no_grad():
            moved = [w - begin for w, begin in zip(self._weights, self._start, strict=True)]
            squared_distance = sum(
                float((m / unit).square().sum()) for m, unit in zip(moved, self._row_scales, strict=True)
            )
            scale = self._distance / max(math.sqrt(squared_distance / self._count), 1e-30)
            for weight, begin, change in zip(self._weights, self._start, moved, strict=True):
                weight.copy_(begin + scale * change)

    def _compute_step_sizes(
        self, model: "torch.nn.Module", images: "torch.Tensor", batch: int
    ) -> "list[torch.Tensor]":
        """How far each weight goes, in units of its row's root mean square, mean square 1.

        Let `S_t` be what a tensor's n_t weights cost, `eps_t` the mark's amplitude there, both as registering would
        have them from this copy. A tracer who weighs tensors by what they have moved gets `sum_t n_t eps_t^2 / d_t^2`
        out of ways `d_t`, which cost `sum_t d_t^2 S_t`: least for `d_t^4 = eps_t^2 n_t / S_t`. Within a tensor the
        way is `1 / sqrt(F + damping)`, F over its mean.
        """
        import torch

        fisher = [torch.zeros_like(weight) for weight in self._weights]
        for part in images.split(batch):
            student_logits = logits(model, part)
            chance = student_logits.detach().float().softmax(-1)
            drawn = torch.multinomial(chance.cpu(), 1, generator=self._generator).to(part.device)
            score = student_logits.float().log_softmax(-1).gather(1, drawn)
            sign = 1 - 2 * torch.randint(0, 2, score.shape, generator=self._generator).to(part.device)
            gradients = torch.autograd.grad((score * sign).sum(), self._weights)
            for total, gradient, unit in zip(fisher, gradients, self._row_scales, strict=True):
                total += (gradient * unit).square()
        counts = np.array([weight.numel() for weight in self._weights])
        cost = np.array([float(total.sum()) for total in fisher]) / (2 * len(images))
        cost = np.maximum(cost, MIN_COST * cost.max() + 1e-30)
        squared_distance = np.sqrt(spend_budget(MAX_KL, cost, counts)) * (counts / cost) ** 0.25
        squared_distance /= np.sqrt((counts * squared_distance**2).sum() / counts.sum())
        step_size = [(total / total.mean().clamp_min(1e-30) + DAMPING).rsqrt() for total in fisher]
        return [
            float(d) * each / each.square().mean().sqrt() for d, each in zip(squared_distance, step_size, strict=True)
        ]


def _row_rms(weight: "torch.Tensor") -> "torch.Tensor":
    """The root mean square of each row, shaped to be multiplied with the weight; at least a hundredth of the
    tensor's, as there may be rows of zeros."""
    squares = weight.flatten(1).square().mean(1)
    rms = squares.clamp_min(1e-4 * float(squares.mean()) + 1e-30).sqrt()
    return rms.reshape(-1, *[1] * (weight.ndim - 1))


def _interpolate(start: "torch.Tensor", end: "torch.Tensor", share: float) -> "torch.Tensor":
    return start.lerp(end, share) if start.is_floating_point() else start.clone()
