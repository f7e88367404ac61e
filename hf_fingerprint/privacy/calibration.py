"""Calibration of a bottleneck for a leakage target: B trained against an adversary, and the noise level.

The owner calibrates with public images, before any private image is used, and gives the result to the data holders.
They can check it with the same functions and their own public images.
"""

from dataclasses import asdict, dataclass

import torch

from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.privacy.bottleneck import Bottleneck
from hf_fingerprint.privacy.decoder import ImageDecoder, ReconstructionQuality, reconstruction_loss
from hf_fingerprint.privacy.denoising import Denoiser, channel_deviation
from hf_fingerprint.privacy.leakage import measure_reconstruction, pixel_range, seeded, train_decoder
from hf_fingerprint.privacy.partition import Partition
from hf_fingerprint.progress import Progress, shows_progress, silent


MIN_SIGMA, MAX_SIGMA, MAX_TRIES = 0.25, 32.0, 5
HELD_OUT_SHARE = 0.2
LEARNING_RATE, BATCH, WEIGHT, MARGIN = 2e-3, 32, 0.5, 0.02


@dataclass(frozen=True)
class NoiseCalibration:
    """The noise that meets a target, and the leakage at it, measured on public images that the adversary did not see.

    Attributes:
        target_ssim (`float`): the target.
        sigma (`float`): the noise's standard deviation, in units of a code's.
        reconstruction ([`ReconstructionQuality`]): quality of the adversary's reconstructions.
        bits_per_image (`float`): the proven bound on information, in bits.
    """

    target_ssim: float
    sigma: float
    reconstruction: ReconstructionQuality
    bits_per_image: float

    def to_dict(self) -> dict[str, object]:
        """The fields as values for JSON."""
        return asdict(self)


@shows_progress
def calibrate_noise(
    bottleneck: Bottleneck,
    features: torch.Tensor,
    images: torch.Tensor,
    target_ssim: float,
    steps: int = 200,
    tries: int = MAX_TRIES,
    progress: Progress | None = None,
) -> NoiseCalibration:
    """Sets the smallest noise found at which an adversary's reconstructions stay below a similarity.

    Searches sigma between 0.25 and 32 and trains a new decoder for each try.

    Args:
        bottleneck ([`Bottleneck`]): its `sigma` is set.
        features (`torch.Tensor` of shape `(n, *shape)`): features of public images at the cut.
        images (`torch.Tensor` of shape `(n, channels, height, width)`): these images.
        target_ssim (`float`): the largest structural similarity, between 0 and 1.
        steps (`int`, *optional*, defaults to 200): training steps of each decoder.
        tries (`int`, *optional*, defaults to 5): how many noise levels to try.
        progress (callable, *optional*): a [`Progress`].

    Raises:
        [`FingerprintError`]: if the target is out of range, or no noise level meets it.
    """
    progress = progress or silent
    if not 0 < target_ssim < 1:
        raise FingerprintError(f"target_ssim must be between 0 and 1, got {target_ssim}: choose another.")
    held_out = max(1, round(len(images) * HELD_OUT_SHARE))

    def measure_leakage(sigma: float) -> ReconstructionQuality:
        bottleneck.sigma = sigma
        decoder = train_decoder(bottleneck.send, features[held_out:], images[held_out:], steps)
        with seeded(1), torch.no_grad():
            sent = bottleneck.send(features[:held_out])
        return measure_reconstruction(decoder, sent, images[:held_out])

    low: tuple[float, float | None] = (MIN_SIGMA, None)
    high: tuple[float, float | None] = (MAX_SIGMA, None)
    accepted: tuple[float, ReconstructionQuality] | None = None
    for attempt in range(tries):
        sigma = _next_sigma(low, high, target_ssim)
        found = measure_leakage(sigma)
        if found.ssim <= target_ssim:
            high, accepted = (sigma, found.ssim), (sigma, found)
        else:
            low = sigma, found.ssim
        progress("calibrating the noise", attempt + 1, tries)
    if accepted is None:
        accepted = MAX_SIGMA, measure_leakage(MAX_SIGMA)
        if accepted[1].ssim > target_ssim:
            raise FingerprintError(
                f"Even at sigma {MAX_SIGMA:.3g} the SSIM is {accepted[1].ssim:.3f}, above {target_ssim}: the "
                "images are too similar to each other, so choose a higher target."
            )
    bottleneck.sigma = accepted[0]
    return NoiseCalibration(target_ssim, accepted[0], accepted[1], bottleneck.bits_per_image)


def _next_sigma(low: tuple[float, float | None], high: tuple[float, float | None], target: float) -> float:
    """The sigma at `target`, slightly below it, linear in log sigma; the geometric mean unless both ends are known."""
    share = 0.5
    if low[1] is not None and high[1] is not None:
        share = (low[1] - (1 - MARGIN) * target) / max(1e-6, low[1] - high[1])
    return float(low[0] * (high[0] / low[0]) ** min(0.9, max(0.1, share)))


@shows_progress
def train_against_adversary(
    partition: Partition,
    bottleneck: Bottleneck,
    denoiser: Denoiser,
    features: torch.Tensor,
    images: torch.Tensor,
    steps: int = 200,
    weight: float = WEIGHT,
    rate: float = LEARNING_RATE,
    seed: int = 0,
    progress: Progress | None = None,
) -> ImageDecoder:
    """Trains B so that its codes keep the task's information while a decoder fails on them, and sets m and s.

    In each step the decoder learns to reconstruct images. Then B and the denoiser learn to keep the server part's
    logits and to raise the decoder's loss. Sigma does not change.

    Args:
        partition ([`Partition`]): its server part defines the task. No weight of it changes.
        bottleneck ([`Bottleneck`]): its B is trained.
        denoiser ([`Denoiser`]): trained together with B.
        features (`torch.Tensor` of shape `(n, *shape)`): features of public images at the cut.
        images (`torch.Tensor` of shape `(n, channels, height, width)`): these images.
        steps (`int`, *optional*, defaults to 200): AdamW steps.
        weight (`float`, *optional*, defaults to 0.5): weight of the decoder's loss.
        rate (`float`, *optional*, defaults to 2e-3): learning rate of B; 2e-2 moves it far.
        seed (`int`, *optional*, defaults to 0): seed of batches, noise and the decoder's initial weights.
        progress (callable, *optional*): a [`Progress`].

    Returns:
        [`ImageDecoder`]: the adversary after the last step.
    """
    progress = progress or silent
    partition.model.eval()
    value_range, deviation = pixel_range(images), channel_deviation(features)
    squeeze, denoising = bottleneck.squeeze.requires_grad_(True), [*denoiser.requires_grad_(True).train().parameters()]
    with seeded(seed), torch.enable_grad():
        decoder = ImageDecoder(bottleneck.code_shape, partition.size).to(features.device)
        optimizer = torch.optim.AdamW([{"params": [squeeze], "lr": rate}, {"params": denoising}], LEARNING_RATE)
        decoder_optimizer = torch.optim.AdamW(decoder.parameters(), LEARNING_RATE)
        for step in range(steps):
            pick = torch.randint(len(images), (BATCH,))
            batch_features = features[pick]
            with torch.no_grad():
                bottleneck.fit_normalization(batch_features)
                target_logits = partition.server_part(batch_features)
            code = bottleneck.send(batch_features)
            decoder_optimizer.zero_grad()
            reconstruction_loss(decoder(code.detach()), images[pick], value_range).mean().backward()
            decoder_optimizer.step()
            denoised = denoiser(code)
            logits = partition.server_part(denoised)
            task_loss = (logits - target_logits).square().mean() / target_logits.var().clamp_min(1e-6)
            feature_loss = ((denoised - batch_features) / deviation).square().mean()
            reconstructed = reconstruction_loss(decoder(code), images[pick], value_range).mean()
            optimizer.zero_grad()
            torch.autograd.backward(task_loss + feature_loss - weight * reconstructed, inputs=[squeeze, *denoising])
            optimizer.step()
            progress("training the bottleneck", step + 1, steps)
    bottleneck.requires_grad_(False).fit_normalization(features)
    denoiser.requires_grad_(False).eval()
    return decoder.eval()
