"""Leakage, measured: what adversaries get out of what was sent, and of the model that was released.

* Reconstruction: a decoder trained on public images draws the private ones from their codes.
* Matching: whether a known image is among those sent, by the likeness of its code (anybody with the front can do it).
* Membership: whether a known image was trained on, from the released model's answer to it (S. Yeom et al., "Privacy
  risk in machine learning", arXiv 1709.01604: its loss; R. Shokri et al., arXiv 1610.05820: a classifier of
  confidences).

An adversary that fails proves nothing about a better one. What holds for all of them is `Bottleneck.bits_per_image`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np
import torch

from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.privacy.decoder import (
    ImageDecoder,
    ReconstructionQuality,
    reconstruction_loss,
    structural_similarity,
)
from hf_fingerprint.privacy.partition import class_logits
from hf_fingerprint.progress import Progress, silent


STEPS, BATCH, LEARNING_RATE = 400, 32, 4e-3
_MAX_ITERATIONS = 200


@dataclass(frozen=True)
class Membership:
    """How well members of a training are told from others; each an area under the ROC curve, 0.5 for guessing.

    Attributes:
        by_loss (`float`): by the loss alone.
        by_confidences (`float`): by a logistic regression on the sorted log-probabilities and the loss, whose
            adversary knows half of the members already and is judged on the other half.
    """

    by_loss: float
    by_confidences: float

    @property
    def auc(self) -> float:
        """The better adversary's."""
        return max(self.by_loss, self.by_confidences)

    def to_dict(self) -> dict[str, float]:
        """As JSON knows it."""
        return asdict(self) | {"auc": self.auc}


def train_decoder(
    encode: Callable[[torch.Tensor], torch.Tensor],
    features: torch.Tensor,
    images: torch.Tensor,
    steps: int = STEPS,
    batch: int = BATCH,
    seed: int = 0,
    progress: Progress | None = None,
) -> ImageDecoder:
    """An adversary's decoder.

    Args:
        encode (callable): from features `(batch, *shape)` to codes as they are sent, with fresh noise at each call.
        features (`torch.Tensor` of shape `(n, *shape)`): of public images, at the cut.
        images (`torch.Tensor` of shape `(n, channels, height, width)`): those.
        steps (`int`, *optional*, defaults to 400): of AdamW.
        batch (`int`, *optional*, defaults to 32): images a step.
        seed (`int`, *optional*, defaults to 0): of its weights and batches.
        progress (callable, *optional*): a [`Progress`].
    """
    progress = progress or silent
    value_range = pixel_range(images)
    with seeded(seed), torch.enable_grad():
        with torch.no_grad():
            shape = tuple(encode(features[:2]).shape[1:])
        size = (images.shape[1], images.shape[2], images.shape[3])
        decoder = ImageDecoder(shape, size).to(features.device)
        optimizer = torch.optim.AdamW(decoder.parameters(), LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
        for step in range(steps):
            pick = torch.randint(len(images), (batch,))
            with torch.no_grad():
                code = encode(features[pick])
            loss = reconstruction_loss(decoder(code), images[pick], value_range).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            progress("training a decoder", step + 1, steps)
    return decoder.eval()


@torch.no_grad()
def measure_reconstruction(
    decoder: ImageDecoder, codes: torch.Tensor, images: torch.Tensor, batch_size: int = 128
) -> ReconstructionQuality:
    """How like images the decoder's drawings of their codes are.

    Args:
        decoder ([`ImageDecoder`]): trained.
        codes (`torch.Tensor` of shape `(n, *code_shape)`): as they were sent.
        images (`torch.Tensor` of shape `(n, channels, height, width)`): those.
    """
    value_range, low, high = pixel_range(images), images.min(), images.max()
    squared, similarity = [], []
    for code, image in zip(codes.split(batch_size), images.split(batch_size), strict=True):
        reconstructed = decoder(code).clamp(low, high)
        squared.append(((reconstructed - image) / value_range).square().mean((1, 2, 3)))
        similarity.append(structural_similarity(reconstructed, image, value_range))
    ratio = -10 * torch.cat(squared).clamp_min(1e-12).log10()
    return ReconstructionQuality(float(ratio.mean()), float(torch.cat(similarity).mean()))


@torch.no_grad()
def matching_auc(sent: torch.Tensor, members: torch.Tensor, others: torch.Tensor, sigma: float) -> float:
    """How well an owner who has an image can tell whether it was sent: the AUC of the best of its likelihood ratios,
    "this is the image with noise" against "this is some image", all images taken to be normally distributed.

    Args:
        sent (`torch.Tensor` of shape `(n, *code_shape)`): everything that was sent, with noise.
        members, others (`torch.Tensor` of shape `(m, *code_shape)`): noiseless codes of images that were, and weren't.
        sigma (`float`): the noise's deviation.
    """
    sent = sent.flatten(1)
    centered = sent - sent.mean(0)
    spread = centered.T @ centered / len(sent) + 1e-3 * sigma**2 * torch.eye(sent.shape[1])
    some = (centered * torch.linalg.solve(spread, centered.T).T).sum(1) / 2
    best = [
        torch.cat(
            [
                (some - torch.cdist(part, sent).square() / (2 * sigma**2)).max(1).values
                for part in codes.flatten(1).split(256)
            ]
        ).numpy()
        for codes in (members, others)
    ]
    return roc_auc(best[0], best[1])


@torch.no_grad()
def measure_membership(
    model: torch.nn.Module,
    members: tuple[torch.Tensor, torch.Tensor],
    others: tuple[torch.Tensor, torch.Tensor],
    batch_size: int = 128,
) -> Membership:
    """How well a released model's answers tell what it was trained on.

    Args:
        model (`torch.nn.Module`): in evaluation mode.
        members, others (`(images, labels)`): equally many that it was, and wasn't, trained on.

    Raises:
        [`FingerprintError`]: if there are fewer than 20 of either.
    """
    if min(len(members[1]), len(others[1])) < 20:
        raise FingerprintError("Membership is measured on 20 images or more of either kind.")
    tables = []
    for images, labels in (members, others):
        logits = torch.cat([class_logits(model(part)) for part in images.split(batch_size)]).double()
        probabilities = logits.log_softmax(1)
        loss = -probabilities.gather(1, labels[:, None])
        tables.append(torch.cat([loss, probabilities.sort(1, descending=True).values.clamp_min(-30)], 1).numpy())
    inside, outside = tables
    by_loss = roc_auc(-inside[:, 0], -outside[:, 0])
    return Membership(by_loss, _regression_auc(inside, outside))


def roc_auc(positives: np.ndarray, negatives: np.ndarray) -> float:
    """The chance that a positive scores above a negative, ties for half."""
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([positives, negatives]))[: len(positives)].sum()
    return float((ranks - len(positives) * (len(positives) + 1) / 2) / (len(positives) * len(negatives)))


def pixel_range(images: torch.Tensor) -> float:
    """The largest value of all pixels less the smallest."""
    value_range = float(images.max() - images.min())
    if not value_range > 0:
        raise FingerprintError("The images are all of one grey: give ones with something on them.")
    return value_range


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers of PyTorch from a seed; what came before goes on afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _regression_auc(inside: np.ndarray, outside: np.ndarray) -> float:
    """Logistic regression, fitted on the first half and judged on the second."""
    from scipy.optimize import minimize
    from scipy.special import expit

    half = min(len(inside), len(outside)) // 2
    rows = np.concatenate([inside[:half], outside[:half]])
    mean, deviation = rows.mean(0), rows.std(0) + 1e-9
    known = (rows - mean) / deviation
    truth = np.repeat([1.0, 0.0], half)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        score = known @ weights[1:] + weights[0]
        wrong = (expit(score) - truth) / len(truth)
        value = np.logaddexp(0, score).mean() - (truth * score).mean() + 1e-3 * weights[1:] @ weights[1:]
        return float(value), np.concatenate([[wrong.sum()], known.T @ wrong + 2e-3 * weights[1:]])

    weights = minimize(
        loss, np.zeros(rows.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": _MAX_ITERATIONS}
    ).x
    scores = [((table[half:] - mean) / deviation) @ weights[1:] for table in (inside, outside)]
    return roc_auc(*scores)
