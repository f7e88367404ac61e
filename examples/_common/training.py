"""A plain training loop, for the owner who makes a base and for the attacker who fine-tunes a copy."""

import torch
from rich.progress import track


def fine_tune(
    model: torch.nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    lr: float,
    steps: int,
    batch: int = 64,
    seed: int = 0,
    label: str = "fine-tuning",
) -> torch.nn.Module:
    """Trains a model in place with AdamW on all its weights and returns it in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    model.train()
    for _ in track(range(steps), description=label, transient=True):
        pick = torch.randint(len(images), (batch,), generator=generator)
        loss = torch.nn.functional.cross_entropy(model(images[pick]), labels[pick])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def predict(model: torch.nn.Module, images: torch.Tensor, batch: int = 128) -> torch.Tensor:
    """Returns the predicted labels, shape `(n,)`."""
    return torch.cat([model(part).argmax(-1) for part in images.split(batch)])


def accuracy(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Returns the share of correct predictions."""
    return float((predict(model, images) == labels).double().mean())
