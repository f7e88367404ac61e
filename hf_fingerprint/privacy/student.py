"""What of the features the task reads, and a reader of codes.

A picture is spread over all of the features; what tells its class lies along few directions. First come the linear
discriminants, whose means differ most between classes, then those that the back's logits answer to most (P.
Constantine, E. Dow, Q. Wang, "Active subspace methods in theory and practice", arXiv 1304.2070). A few dozen such
numbers stay readable under noise that hides the picture.

A reader is a small network that learns from the holders' codes as they come. What it then says of the owner's own
unlabelled images teaches the back on features without noise: what it learnt in private passes to the released model
through public images alone (N. Papernot et al., arXiv 1610.05755, without their noise on votes).
"""

import math
from collections.abc import Iterator

import torch

from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.privacy.bottleneck import Bottleneck
from hf_fingerprint.privacy.leakage import seeded
from hf_fingerprint.privacy.partition import Partition


MAX_AXES = 512  # of the features' spread that directions are looked for in, if there are more
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
    """Sets B to the directions that tell the classes apart, then to those that the back answers to besides, and
    normalises.

    Args:
        partition ([`Partition`]): its back knows the task a little; no weight of it changes. A bottleneck with a lens
            has its own.
        bottleneck ([`Bottleneck`]): its B, m and s are set; one over `whole` images tells most with few numbers.
        features (`torch.Tensor` of shape `(n, *shape)`): of public images, at the cut; a few thousand, no labels.
        residual_scale (`float`, *optional*, defaults to 0.3): the deviation of the other directions' numbers, in units of the
            discriminants': what is sent of images beyond their classes.
        probes (`int`, *optional*, defaults to 4): random mixtures of the logits whose slopes are taken at each image.
        seed (`int`, *optional*, defaults to 0): of those.

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
        raise FingerprintError(
            f"{len(features)} public images are too few to choose {bottleneck.channels} directions by: give more."
        )
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
    """The principal axes of centred rows, as columns; approximate where there are far more numbers (N. Halko, P.
    Martinsson, J. Tropp, "Finding structure with randomness", arXiv 0909.4061)."""
    if rows.shape[1] <= 4 * count:
        return torch.linalg.eigh(rows.T @ rows)[1][:, -count:]
    with seeded(seed):
        return torch.pca_lowrank(rows, count, center=False)[2]


@torch.no_grad()
def _discriminants(partition: Partition, features: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Orthonormal directions of the spread of the classes' means, one fewer than classes; the classes are those that
    the back sees."""
    probabilities = torch.cat([partition.server_part(part).softmax(1) for part in features.split(BATCH)])
    shares = probabilities.mean(0).clamp_min(1e-9)
    means = (
        probabilities.repeat_interleave(len(rows) // len(features), 0).T @ rows / len(rows) / shares.sqrt()[:, None]
    )
    return torch.linalg.svd(means, full_matrices=False)[2][: len(shares) - 1]


def _logit_gradients(
    partition: Partition, bottleneck: Bottleneck, features: torch.Tensor, probes: int, seed: int
) -> Iterator[torch.Tensor]:
    """The gradients of random mixtures of the centred logits, as rows for B."""
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
    """A small network from codes, with their noise, to logits: it learns in private in the back's place.

    Args:
        code_shape (`tuple[int, ...]`): of one image's code.
        classes (`int`): how many logits.
        nets (`int`, *optional*, defaults to 2): networks inside, whose logits are averaged.
        width (`int`, *optional*, defaults to 256): units of each of their two hidden layers.
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
        """The chances of each class, `(n, classes)`, on average over draws of the noise; labels for the back.

        Args:
            bottleneck ([`Bottleneck`]): whose codes it reads.
            features (`torch.Tensor` of shape `(n, *shape)`): of public images, at the cut.
            draws (`int`, *optional*, defaults to 16): of each image's noise.
            seed (`int`, *optional*, defaults to 0): of those.
        """
        self.eval()
        with seeded(seed):
            codes = [bottleneck.encode(part) for part in features.split(BATCH)]
            total = [
                torch.stack([self(bottleneck.with_noise(code)).softmax(1) for _ in range(draws)]).mean(0)
                for code in codes
            ]
        return torch.cat(total)


def _hidden_layer(inside: int, outside: int) -> list[torch.nn.Module]:
    return [torch.nn.Linear(inside, outside), torch.nn.BatchNorm1d(outside), torch.nn.ReLU()]
