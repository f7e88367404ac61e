"""From a stated leakage to a bottleneck: B trained against an adversary, and the noise that keeps it down.

The owner does all of this with public images before any private one is touched, and hands the result to the holders.
They can check it by the same functions, with public images of their own.
"""

from dataclasses import asdict, dataclass

import torch

from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.privacy.bottleneck import Bottleneck
from hf_fingerprint.privacy.decoder import ImageDecoder, ReconstructionQuality, reconstruction_loss
from hf_fingerprint.privacy.denoising import Denoiser
from hf_fingerprint.privacy.leakage import measure_reconstruction, pixel_range, seeded, train_decoder
from hf_fingerprint.privacy.partition import Partition
from hf_fingerprint.progress import Progress, silent


MIN_SIGMA, MAX_SIGMA, MAX_TRIES = 0.25, 32.0, 5
HELD_OUT_SHARE = 0.2
LEARNING_RATE, BATCH, WEIGHT = 2e-3, 32, 0.5


@dataclass(frozen=True)
class NoiseCalibration:
    """What a target was met with, measured on public images that the adversary didn't train on.

    Attributes:
        target_ssim (`float`): what was asked.
        sigma (`float`): the noise chosen, in units of a sent number's deviation.
        reconstruction ([`ReconstructionQuality`]): the adversary's drawings at that noise.
        bits_per_image (`float`): the proven bound at that noise.
    """

    target_ssim: float
    sigma: float
    reconstruction: ReconstructionQuality
    bits_per_image: float

    def to_dict(self) -> dict[str, object]:
        """As JSON knows it."""
        return asdict(self)


def calibrate_noise(
    bottleneck: Bottleneck,
    features: torch.Tensor,
    images: torch.Tensor,
    target_ssim: float,
    steps: int = 200,
    tries: int = MAX_TRIES,
    progress: Progress | None = None,
) -> NoiseCalibration:
    """Sets the smallest noise found at which an adversary's drawings stay under a likeness.

    Narrows the noise's deviation between 0.25 and 32, with a decoder trained anew for each try.

    Args:
        bottleneck ([`Bottleneck`]): its `sigma` is set.
        features (`torch.Tensor` of shape `(n, *shape)`): of public images, at the cut.
        images (`torch.Tensor` of shape `(n, channels, height, width)`): those.
        target_ssim (`float`): the structural similarity allowed, above 0 and below 1.
        steps (`int`, *optional*, defaults to 200): of each decoder's training.
        tries (`int`, *optional*, defaults to 5): how many.
        progress (callable, *optional*): a [`Progress`].

    Raises:
        [`FingerprintError`]: if the target is none, or even the most noise doesn't meet it.
    """
    progress = progress or silent
    if not 0 < target_ssim < 1:
        raise FingerprintError(f"A target of SSIM {target_ssim} can't be met: choose one above 0 and below 1.")
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
                f"Noise of {MAX_SIGMA:.3g} still lets SSIM {accepted[1].ssim:.3f} through, above {target_ssim}: the images "
                "are too much alike, so state a higher target."
            )
    bottleneck.sigma = accepted[0]
    return NoiseCalibration(target_ssim, accepted[0], accepted[1], bottleneck.bits_per_image)


def _next_sigma(
    low: tuple[float, float | None], high: tuple[float, float | None], target: float, margin: float = 0.02
) -> float:
    """The next deviation to try: where a straight line in its logarithm meets the target, less a little; the middle as
    long as only one end was measured."""
    share = 0.5
    if low[1] is not None and high[1] is not None:
        share = (low[1] - (1 - margin) * target) / max(1e-6, low[1] - high[1])
    return float(low[0] * (high[0] / low[0]) ** min(0.9, max(0.1, share)))


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
    """Turns B so that its codes serve the task and not a decoder; m and s follow.

    Each step the decoder learns to draw, then B and the denoiser learn to keep what the back makes of the features
    (its logits, in units of their deviation) while the decoder fails. Noise is as it is set.

    Args:
        partition ([`Partition`]): its back says what the task needs; no weight of it changes.
        bottleneck ([`Bottleneck`]): its B is trained.
        denoiser ([`Denoiser`]): trained for it, and trained on with it.
        features (`torch.Tensor` of shape `(n, *shape)`): of public images, at the cut.
        images (`torch.Tensor` of shape `(n, channels, height, width)`): those.
        steps (`int`, *optional*, defaults to 200): of AdamW.
        weight (`float`, *optional*, defaults to 0.5): of the decoder's failure.
        rate (`float`, *optional*, defaults to 2e-3): AdamW's learning rate for B; 2e-2 turns it far.
        seed (`int`, *optional*, defaults to 0): of batches, noise and the decoder's first weights.
        progress (callable, *optional*): a [`Progress`].

    Returns:
        [`ImageDecoder`]: the adversary, as it ended.
    """
    progress = progress or silent
    partition.model.eval()
    value_range = pixel_range(images)
    axes = [i for i in range(features.dim()) if i != (1 if features.dim() == 4 else features.dim() - 1)]
    deviation = features.std(axes, keepdim=True).clamp_min(1e-6)
    squeeze, denoising = bottleneck.squeeze.requires_grad_(True), [*denoiser.requires_grad_(True).train().parameters()]
    with seeded(seed), torch.enable_grad():
        decoder = ImageDecoder(bottleneck.code_shape, partition.size).to(features.device)
        bottleneck_optimizer = torch.optim.AdamW(
            [{"params": [squeeze], "lr": rate}, {"params": denoising}], LEARNING_RATE
        )
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
            task_loss = (
                partition.server_part(denoised) - target_logits
            ).square().mean() / target_logits.var().clamp_min(1e-6)
            feature_loss = ((denoised - batch_features) / deviation).square().mean()
            reconstructed = reconstruction_loss(decoder(code), images[pick], value_range).mean()
            bottleneck_optimizer.zero_grad()
            torch.autograd.backward(task_loss + feature_loss - weight * reconstructed, inputs=[squeeze, *denoising])
            bottleneck_optimizer.step()
            progress("training the bottleneck", step + 1, steps)
    bottleneck.requires_grad_(False).fit_normalization(features)
    denoiser.requires_grad_(False).eval()
    return decoder.eval()
