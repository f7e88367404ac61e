"""Measured leakage: what adversaries learn from the codes that were sent and from the released model.

* Reconstruction: a decoder trained on public images reconstructs the private ones from their codes.
* Matching: whether a known image is among those sent, by the similarity of its code; needs only the client part.
* Membership: whether a known image was trained on, from the released model's output (S. Yeom et al., "Privacy risk in
  machine learning", arXiv 1709.01604: its loss; R. Shokri et al., arXiv 1610.05820: a classifier of confidences).

A failed adversary proves nothing about a better one. `Bottleneck.bits_per_image` bounds all of them.

Matching and membership need scikit-learn: `pip install 'hf-fingerprint[privacy]'`.
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
from hf_fingerprint.progress import Progress, shows_progress, silent


STEPS, BATCH, LEARNING_RATE = 400, 32, 4e-3
_MAX_ITERATIONS, _PENALTY = 200, 1e-3


@dataclass(frozen=True)
class Membership:
    """How well an adversary separates training images from others, as areas under the ROC curve (0.5 for guessing).

    Attributes:
        by_loss (`float`): by the loss alone.
        by_confidences (`float`): by a logistic regression on the sorted log-probabilities and the loss. Its adversary
            knows half of the members, and is measured on the other half.
    """

    by_loss: float
    by_confidences: float

    @property
    def auc(self) -> float:
        """The better adversary's area."""
        return max(self.by_loss, self.by_confidences)

    def to_dict(self) -> dict[str, float]:
        """The fields and `auc` as values for JSON."""
        return asdict(self) | {"auc": self.auc}


@shows_progress
def train_decoder(
    encode: Callable[[torch.Tensor], torch.Tensor],
    features: torch.Tensor,
    images: torch.Tensor,
    steps: int = STEPS,
    batch: int = BATCH,
    seed: int = 0,
    progress: Progress | None = None,
) -> ImageDecoder:
    """Trains an adversary's decoder and returns it in evaluation mode.

    Args:
        encode (callable): maps features `(batch, *shape)` to codes, with new noise at each call.
        features (`torch.Tensor` of shape `(n, *shape)`): features of public images at the cut.
        images (`torch.Tensor` of shape `(n, channels, height, width)`): these images.
        steps (`int`, *optional*, defaults to 400): AdamW steps.
        batch (`int`, *optional*, defaults to 32): images per step.
        seed (`int`, *optional*, defaults to 0): seed of its weights and batches.
        progress (callable, *optional*): a [`Progress`].
    """
    progress = progress or silent
    value_range = pixel_range(images)
    with seeded(seed), torch.enable_grad():
        with torch.no_grad():
            shape = tuple(encode(features[:2]).shape[1:])
        channels, height, width = images.shape[1:]
        decoder = ImageDecoder(shape, (channels, height, width)).to(features.device)
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
    """The quality of a decoder's reconstructions.

    Args:
        decoder ([`ImageDecoder`]): a trained decoder.
        codes (`torch.Tensor` of shape `(n, *code_shape)`): the codes that were sent.
        images (`torch.Tensor` of shape `(n, channels, height, width)`): the images behind the codes.
        batch_size (`int`, *optional*, defaults to 128): images at a time.
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
    """The AUC of an owner who has an image and tests whether it was sent.

    The test statistic is the largest likelihood ratio, over all codes sent, of "this image plus noise" against "some
    image", where codes of all images are modeled as normally distributed.

    Args:
        sent (`torch.Tensor` of shape `(n, *code_shape)`): all codes sent, with noise.
        members, others (`torch.Tensor` of shape `(m, *code_shape)`): noiseless codes of images sent, and of others.
        sigma (`float`): the noise's standard deviation.
    """
    sent = sent.flatten(1)
    centered = sent - sent.mean(0)
    spread = centered.T @ centered / len(sent) + 1e-3 * sigma**2 * torch.eye(sent.shape[1])
    some = (centered * torch.linalg.solve(spread, centered.T).T).sum(1) / 2

    def largest_ratios(codes: torch.Tensor) -> np.ndarray:
        ratios = (some - torch.cdist(part, sent).square() / (2 * sigma**2) for part in codes.flatten(1).split(256))
        return torch.cat([part.max(1).values for part in ratios]).numpy()

    return roc_auc(largest_ratios(members), largest_ratios(others))


@torch.no_grad()
def measure_membership(
    model: torch.nn.Module,
    members: tuple[torch.Tensor, torch.Tensor],
    others: tuple[torch.Tensor, torch.Tensor],
    batch_size: int = 128,
) -> Membership:
    """How well a released model's outputs reveal the images that it was trained on.

    Args:
        model (`torch.nn.Module`): the model in evaluation mode.
        members, others (`(images, labels)`): training images and, equally many, other images.
        batch_size (`int`, *optional*, defaults to 128): images at a time.

    Raises:
        [`FingerprintError`]: if there are fewer than 20 images of either kind, or scikit-learn is missing.
    """
    if min(len(members[1]), len(others[1])) < 20:
        raise FingerprintError("Membership needs 20 images or more of either kind: give more.")
    tables = []
    for images, labels in (members, others):
        logits = torch.cat([class_logits(model(part)) for part in images.split(batch_size)]).double()
        probabilities = logits.log_softmax(1)
        loss = -probabilities.gather(1, labels[:, None])
        tables.append(torch.cat([loss, probabilities.sort(1, descending=True).values.clamp_min(-30)], 1).numpy())
    inside, outside = tables
    return Membership(roc_auc(-inside[:, 0], -outside[:, 0]), _regression_auc(inside, outside))


def roc_auc(positives: np.ndarray, negatives: np.ndarray) -> float:
    """The area under the ROC curve: the probability that a positive scores above a negative. Raises a
    [`FingerprintError`] if scikit-learn is missing."""
    try:
        from sklearn.metrics import roc_auc_score
    except ImportError:
        raise FingerprintError("Leakage needs scikit-learn: `pip install 'hf-fingerprint[privacy]'`.") from None
    truth = np.repeat([1, 0], [len(positives), len(negatives)])
    return float(roc_auc_score(truth, np.concatenate([positives, negatives])))


def pixel_range(images: torch.Tensor) -> float:
    """The largest pixel value minus the smallest."""
    value_range = float(images.max() - images.min())
    if not value_range > 0:
        raise FingerprintError("The images have only one pixel value: give other images.")
    return value_range


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds PyTorch's random numbers inside the block, and restores their state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _regression_auc(inside: np.ndarray, outside: np.ndarray) -> float:
    """The AUC of a logistic regression that is fitted on the first half of both tables, on their second half."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    half = min(len(inside), len(outside)) // 2
    regression = LogisticRegression(C=1 / (4 * _PENALTY * half), max_iter=_MAX_ITERATIONS)
    known = np.concatenate([inside[:half], outside[:half]])
    fitted = make_pipeline(StandardScaler(), regression).fit(known, np.repeat([1, 0], half))
    return roc_auc(*(fitted.decision_function(table[half:]) for table in (inside, outside)))
