"""Denoising of codes into features, and release of the trained model.

The server part trains on noisy codes but later runs on features without noise. A small network, trained on public
images, therefore maps a code to the expected features E[x | z]. A model that is linear in x and fits these estimates
also fits the features (R. Carroll et al., "Measurement error in nonlinear models", 2006, chapter 4: regression
calibration). The released model does not include this network.
"""

import math

import torch

from hf_fingerprint.privacy.bottleneck import Bottleneck
from hf_fingerprint.privacy.leakage import seeded
from hf_fingerprint.privacy.partition import Partition
from hf_fingerprint.progress import Progress, shows_progress, silent


STEPS, BATCH, LEARNING_RATE, WIDTH, BLOCKS = 600, 64, 3e-3, 96, 4
STATISTICS_BATCH = 250


class Denoiser(torch.nn.Module):
    """A network from codes to features: the best linear estimate plus residual convolution blocks. Tokens see the mean
    of all tokens instead of neighbors. A code without positions counts as one token.

    Args:
        bottleneck ([`Bottleneck`]): makes the codes.
        width (`int`, *optional*, defaults to 96): hidden channels.
    """

    deviation: torch.Tensor

    def __init__(self, bottleneck: Bottleneck, width: int = WIDTH):
        super().__init__()
        self._shrink = 1 / math.sqrt(1 + bottleneck.sigma**2)
        self._shape = bottleneck.shape
        mixed = (math.prod(self._shape),) if bottleneck.flatten_features else self._shape
        self._maps = len(mixed) == 3
        side, features = (3, mixed[0]) if self._maps else (1, mixed[-1])
        self._linear = torch.nn.Conv2d(bottleneck.channels, features, 1)
        self._stem = torch.nn.Conv2d(bottleneck.channels, width, side, padding=side // 2)
        self._blocks = torch.nn.ModuleList(
            torch.nn.Sequential(
                torch.nn.BatchNorm2d(width), torch.nn.ReLU(), torch.nn.Conv2d(width, width, side, padding=side // 2)
            )
            for _ in range(BLOCKS)
        )
        self._head = torch.nn.Conv2d(width, features, 1)
        torch.nn.init.zeros_(self._head.weight)
        torch.nn.init.zeros_(self._head.bias)
        self.register_buffer("deviation", torch.ones(features, 1, 1))

    def forward(self, code: torch.Tensor) -> torch.Tensor:
        """Features `(batch, *shape)` from codes `(batch, *code_shape)`."""
        grid = code if self._maps else code.reshape(len(code), -1, code.shape[-1]).mT[..., None]
        hidden = self._stem(grid * self._shrink)
        for block in self._blocks:
            hidden = hidden + block(hidden)
            if not self._maps:
                hidden = hidden + hidden.mean(2, keepdim=True)
        features = self.deviation * self._head(hidden) + self._linear(grid)
        return features if self._maps else features[..., 0].mT.reshape(len(code), *self._shape)

    @torch.no_grad()
    def init_linear_map(self, bottleneck: Bottleneck, features: torch.Tensor) -> None:
        """Sets the linear map by least squares over public images' features, in closed form over the noise."""
        targets, code = bottleneck.rows(features), torch.cat([bottleneck.encode(part) for part in features.split(256)])
        code = code.movedim(1 if self._maps else -1, -1).flatten(0, -2)
        mean, center = targets.mean(0), code.mean(0)
        centered = code - center
        noise = (bottleneck.sigma**2 + 1e-6) * torch.eye(len(center)).to(centered)
        power = centered.T @ centered / len(centered) + noise
        matrix = torch.linalg.solve(power, centered.T @ (targets - mean) / len(centered)).T
        self._linear.weight.copy_(matrix[..., None, None])
        self._linear.bias.copy_(mean - matrix @ center)
        self.deviation.copy_(targets.std(0).clamp_min(1e-6)[:, None, None])


def channel_deviation(features: torch.Tensor) -> torch.Tensor:
    """The standard deviation of each channel, over images and positions, shaped to divide the features."""
    axis = 1 if features.dim() == 4 else features.dim() - 1
    return features.std([i for i in range(features.dim()) if i != axis], keepdim=True).clamp_min(1e-6)


@shows_progress
def train_denoiser(
    bottleneck: Bottleneck,
    features: torch.Tensor,
    steps: int = STEPS,
    batch: int = BATCH,
    seed: int = 0,
    progress: Progress | None = None,
) -> Denoiser:
    """Trains a denoiser for a bottleneck and its noise, and returns it in evaluation mode. The loss is squared error,
    each channel in units of its standard deviation.

    Args:
        bottleneck ([`Bottleneck`]): the one that data holders use.
        features (`torch.Tensor` of shape `(n, *shape)`): features of public images at the cut.
        steps (`int`, *optional*, defaults to 600): AdamW steps.
        batch (`int`, *optional*, defaults to 64): images per step.
        seed (`int`, *optional*, defaults to 0): seed of its weights, batches and noise.
        progress (callable, *optional*): a [`Progress`].
    """
    progress = progress or silent
    deviation = channel_deviation(features)
    with seeded(seed), torch.enable_grad():
        denoiser = Denoiser(bottleneck).to(features.device)
        denoiser.init_linear_map(bottleneck, features)
        optimizer = torch.optim.AdamW(denoiser.parameters(), LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
        for step in range(steps):
            batch_features = features[torch.randint(len(features), (batch,))]
            with torch.no_grad():
                code = bottleneck.send(batch_features)
            loss = ((denoiser(code) - batch_features) / deviation).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            progress("training the denoiser", step + 1, steps)
    return denoiser.requires_grad_(False).eval()


@torch.no_grad()
def release(partition: Partition, features: torch.Tensor) -> torch.nn.Module:
    """The trained model in evaluation mode, ready to release: without bottleneck, noise or denoiser.

    Re-estimates the server part's running statistics on public images without noise. No weight changes.

    Args:
        partition ([`Partition`]): with a trained server part.
        features (`torch.Tensor` of shape `(n, *shape)`): features of public images at the cut.

    Returns:
        `torch.nn.Module`: the partition's own model, an ordinary one.
    """
    model = partition.model.eval()
    kind = torch.nn.modules.batchnorm._BatchNorm
    found = {name: module for name, module in model.named_modules() if isinstance(module, kind)}
    running = {f"{name}.running_mean": norm for name, norm in found.items() if norm.running_mean is not None}
    norms = [norm for name, norm in running.items() if name not in partition.client_tensors]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over batches
        norm.train()
    if norms:
        for part in features.split(STATISTICS_BATCH):
            if len(part) > 1:
                partition.server_part(part)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()
