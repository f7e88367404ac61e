"""Codes along the directions that the task depends on, and a student network that learns from codes.

An image is spread over all features, but its class depends on few directions: the linear discriminants, along which
class means differ most, and those to which the server part's logits respond most (P. Constantine, E. Dow, Q. Wang,
"Active subspace methods", arXiv 1304.2070). A few dozen such numbers survive noise that hides the image.

A student learns from data holders' codes. Its pseudo-labels for the owner's unlabeled images then train the server
part on features without noise, so private knowledge reaches the released model through public images only (N. Papernot
et al., arXiv 1610.05755, without their noise on votes).
"""

import math
from collections.abc import Iterator

import torch

from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.privacy.bottleneck import Bottleneck
from hf_fingerprint.privacy.leakage import seeded
from hf_fingerprint.privacy.partition import Partition


MAX_AXES = 512  # the search for directions uses at most this many principal axes
PROBES, BATCH, RIDGE, RESIDUAL_SCALE = 4, 128, 0.1, 0.3
NETS, WIDTH, DRAWS = 2, 256, 16


def init_task_directions(
    partition: Partition,
    bottleneck: Bottleneck,
    features: torch.Tensor,
    residual_scale: float = RESIDUAL_SCALE,
    probes: int = PROBES,
    seed: int = 0,
) -> None:
    """Sets B to the linear discriminants and then to the directions of the largest logit gradients, and sets m and s.

    Args:
        partition ([`Partition`]): its server part must know the task a little; no weight of it changes. A segment's
            own partition is used instead.
        bottleneck ([`Bottleneck`]): its B, m and s are set. With `flatten_features`, few numbers are enough.
        features (`torch.Tensor` of shape `(n, *shape)`): features of a few thousand public images at the cut.
        residual_scale (`float`, *optional*, defaults to 0.3): the standard deviation of the other directions, in units
            of the discriminants'. It controls how much is sent of an image beyond its class.
        probes (`int`, *optional*, defaults to 4): random mixtures of logits to differentiate at each image.
        seed (`int`, *optional*, defaults to 0): seed of the mixtures.

    Raises:
        [`FingerprintError`]: if there are fewer public images than numbers in a code.
    """
    public = features
    if bottleneck.segment is not None:
        partition = bottleneck.segment.deep_partition
        features = torch.cat([bottleneck.segment(part) for part in public.split(BATCH)])
    partition.model.eval()
    rows = bottleneck.rows(features)
    rows = rows - rows.mean(0)
    count = min(len(rows), rows.shape[1], max(MAX_AXES, bottleneck.channels))
    if count < bottleneck.channels:
        raise FingerprintError(f"{len(features)} images are too few for {bottleneck.channels} directions: give more.")
    axes = _leading_axes(rows, count, seed)
    powers = (rows @ axes).square().mean(0)
    deviations = (powers + RIDGE * rows.square().mean()).clamp_min(1e-12).sqrt()
    discriminants = _discriminants(partition, features, rows @ axes / deviations)[: bottleneck.channels]
    directions = [discriminants]
    if n_others := bottleneck.channels - len(discriminants):
        spread = torch.zeros((count, count)).to(axes)
        for gradients in _logit_gradients(partition, bottleneck, features, probes, seed):
            gradients = gradients @ axes * deviations  # of logits, for a step of one deviation along each axis
            gradients = gradients - gradients @ discriminants.T @ discriminants
            spread += gradients.T @ gradients
        directions.append(torch.linalg.eigh(spread)[1][:, -n_others:].T)
    matrix = torch.cat(directions) / deviations @ axes.T
    matrix /= (rows @ matrix.T).std(0)[:, None].clamp_min(1e-12)
    matrix[len(discriminants) :] *= residual_scale
    with torch.no_grad():
        bottleneck.squeeze.copy_(matrix)
    bottleneck.fit_normalization(public)


def _leading_axes(rows: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """The leading principal axes of centered rows, as columns. Approximate if rows are much longer than `count` (N.
    Halko, P. Martinsson, J. Tropp, "Finding structure with randomness", arXiv 0909.4061)."""
    if rows.shape[1] <= 4 * count:
        return torch.linalg.eigh(rows.T @ rows)[1][:, -count:]
    with seeded(seed):
        return torch.pca_lowrank(rows, count, center=False)[2]


@torch.no_grad()
def _discriminants(partition: Partition, features: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Orthonormal directions of the spread of the means of predicted classes, one fewer than classes."""
    probabilities = torch.cat([partition.server_part(part).softmax(1) for part in features.split(BATCH)])
    shares = probabilities.mean(0).clamp_min(1e-9)
    by_row = probabilities.repeat_interleave(len(rows) // len(features), 0)
    means = by_row.T @ rows / len(rows) / shares.sqrt()[:, None]
    return torch.linalg.svd(means, full_matrices=False)[2][: len(shares) - 1]


def _logit_gradients(
    partition: Partition, bottleneck: Bottleneck, features: torch.Tensor, probes: int, seed: int
) -> Iterator[torch.Tensor]:
    """The gradients of random mixtures of the centered logits, as rows for B."""
    with seeded(seed):
        for part in features.split(BATCH):
            with torch.enable_grad():
                inputs = part.detach().clone().requires_grad_(True)
                logits = partition.server_part(inputs)
                logits = logits - logits.mean(1, keepdim=True)
                for probe in range(probes):
                    mixture = (logits * torch.randn_like(logits)).sum()
                    (gradient,) = torch.autograd.grad(mixture, inputs, retain_graph=probe + 1 < probes)
                    yield bottleneck.rows(gradient)


class Student(torch.nn.Module):
    """A small network from noisy codes to logits, trained by [`owner_loop`] instead of the server part.

    Args:
        code_shape (`tuple[int, ...]`): the shape of one image's code.
        classes (`int`): the number of logits.
        nets (`int`, *optional*, defaults to 2): networks whose logits are averaged.
        width (`int`, *optional*, defaults to 256): units in each of the two hidden layers.
    """

    def __init__(self, code_shape: tuple[int, ...], classes: int, nets: int = NETS, width: int = WIDTH):
        super().__init__()
        self._nets = torch.nn.ModuleList(
            torch.nn.Sequential(
                torch.nn.Flatten(),
                *_hidden_layer(math.prod(code_shape), width),
                *_hidden_layer(width, width),
                torch.nn.Linear(width, classes),
            )
            for _ in range(nets)
        )

    def forward(self, code: torch.Tensor) -> torch.Tensor:
        """Logits `(batch, classes)` from codes `(batch, *code_shape)`."""
        return torch.stack([net(code) for net in self._nets]).mean(0)

    @torch.no_grad()
    def pseudo_labels(
        self, bottleneck: Bottleneck, features: torch.Tensor, draws: int = DRAWS, seed: int = 0
    ) -> torch.Tensor:
        """The class probabilities of public images, `(n, classes)`, averaged over noise.

        Args:
            bottleneck ([`Bottleneck`]): makes the codes.
            features (`torch.Tensor` of shape `(n, *shape)`): features of public images at the cut.
            draws (`int`, *optional*, defaults to 16): noise draws per image.
            seed (`int`, *optional*, defaults to 0): seed of the noise.
        """
        self.eval()
        with seeded(seed):
            found = []
            for code in [bottleneck.encode(part) for part in features.split(BATCH)]:
                drawn = [self(bottleneck.with_noise(code)).softmax(1) for _ in range(draws)]
                found.append(torch.stack(drawn).mean(0))
        return torch.cat(found)


def _hidden_layer(inside: int, outside: int) -> list[torch.nn.Module]:
    return [torch.nn.Linear(inside, outside), torch.nn.BatchNorm1d(outside), torch.nn.ReLU()]
