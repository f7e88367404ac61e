"""The fingerprint as a loss term in training: for the transformers Trainer, timm's loop, and custom loops."""

import lazy_loader


__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
