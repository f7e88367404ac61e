"""A classifier of two layers, built by hand in the form that `build_model` returns."""

import torch
from timm.data import create_transform

from hf_fingerprint.models import BuiltModel


MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


class Tiny(torch.nn.Module):
    """Returns convolution, pooling and head; `after` is applied to the logits."""

    def __init__(self, width: int = 48, classes: int = 5, after: torch.nn.Module | None = None, conv: bool = False):
        super().__init__()
        self.body = torch.nn.Conv2d(3, width, 7, 4)
        self.head = torch.nn.Conv2d(width, classes, 1) if conv else torch.nn.Linear(width, classes)
        self.after, self.conv = after or torch.nn.Identity(), conv

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.body(images).relu().mean((2, 3), keepdim=self.conv)
        return self.after(self.head(features).flatten(1))


def tiny(crop: float = 0.875, size: int = 32, **arguments: object) -> BuiltModel:
    torch.manual_seed(0)
    preprocess = create_transform((3, size, size), crop_pct=crop, mean=MEAN, std=STD, interpolation="bicubic")
    return BuiltModel(Tiny(**arguments).eval(), (3, size, size), MEAN, STD, preprocess)
