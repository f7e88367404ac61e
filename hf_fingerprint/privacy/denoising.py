"""The owner's guess at the features behind a code with noise, and the statistics of those without.

The back learns from codes with noise and then serves features without. So a small network, trained on public images,
first turns a code into the mean of the features that may lie behind it, E[x | z]: what is linear in x and fits the
guesses fits the features too (R. Carroll et al., "Measurement error in nonlinear models", 2006, chapter 4: regression
calibration). It is left behind when the model is released.
"""

import math

import torch

from hf_fingerprint.privacy.bottleneck import Bottleneck
from hf_fingerprint.privacy.leakage import seeded
from hf_fingerprint.privacy.partition import Partition
from hf_fingerprint.progress import Progress, silent


STEPS, BATCH, LEARNING_RATE, WIDTH, BLOCKS = 600, 64, 3e-3, 96, 4
STATISTICS_BATCH = 250


class Denoiser(torch.nn.Module):
    """From codes to features: the best linear guess, and residual blocks of convolutions that add to it. Tokens have
    no neighbours; they see the mean of all instead. A code without places is one token.

    Args:
        bottleneck ([`Bottleneck`]): whose codes.
        width (`int`, *optional*, defaults to 96): channels inside.
    """

    deviation: torch.Tensor

    def __init__(self, bottleneck: Bottleneck, width: int = WIDTH):
        super().__init__()
        self._shrink = 1 / math.sqrt(1 + bottleneck.sigma**2)
        self._shape = bottleneck.shape
        mixed = (math.prod(self._shape),) if bottleneck.flatten_features else self._shape
        self._maps = len(mixed) == 3
        side = 3 if self._maps else 1
        features = mixed[0] if self._maps else mixed[-1]
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
        """Sets the linear map by least squares over public images' features and all noise at once."""
        targets, code = bottleneck.rows(features), torch.cat([bottleneck.encode(part) for part in features.split(256)])
        code = code.movedim(1 if self._maps else -1, -1).flatten(0, -2)
        mean, centre = targets.mean(0), code.mean(0)
        centered = code - centre
        power = centered.T @ centered / len(centered) + (bottleneck.sigma**2 + 1e-6) * torch.eye(len(centre)).to(
            centered
        )
        matrix = torch.linalg.solve(power, centered.T @ (targets - mean) / len(centered)).T
        self._linear.weight.copy_(matrix[..., None, None])
        self._linear.bias.copy_(mean - matrix @ centre)
        self.deviation.copy_(targets.std(0).clamp_min(1e-6)[:, None, None])


def train_denoiser(
    bottleneck: Bottleneck,
    features: torch.Tensor,
    steps: int = STEPS,
    batch: int = BATCH,
    seed: int = 0,
    progress: Progress | None = None,
) -> Denoiser:
    """A denoiser for this bottleneck and its noise, in evaluation mode; least squares, each channel in units of its
    own deviation.

    Args:
        bottleneck ([`Bottleneck`]): as the holders have it.
        features (`torch.Tensor` of shape `(n, *shape)`): of public images, at the cut.
        steps (`int`, *optional*, defaults to 600): of AdamW.
        batch (`int`, *optional*, defaults to 64): images a step.
        seed (`int`, *optional*, defaults to 0): of its weights, batches and noise.
        progress (callable, *optional*): a [`Progress`].
    """
    progress = progress or silent
    axis = 1 if features.dim() == 4 else features.dim() - 1
    deviation = features.std([i for i in range(features.dim()) if i != axis], keepdim=True).clamp_min(1e-6)
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
    """The model as it is given away: front and back, without bottleneck, noise or denoiser, in evaluation mode.

    The back's running statistics are taken anew from public images without noise; its weights stay as trained.

    Args:
        partition ([`Partition`]): its back trained.
        features (`torch.Tensor` of shape `(n, *shape)`): of public images, at the cut.

    Returns:
        `torch.nn.Module`: the partition's own model: the architecture that it always was.
    """
    model = partition.model.eval()
    kind = torch.nn.modules.batchnorm._BatchNorm
    norms = [
        module
        for name, module in model.named_modules()
        if isinstance(module, kind)
        and module.running_mean is not None
        and f"{name}.running_mean" not in partition.client_tensors
    ]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    if norms:
        for part in features.split(STATISTICS_BATCH):
            if len(part) > 1:
                partition.server_part(part)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()
