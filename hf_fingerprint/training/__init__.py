"""The fingerprint as a loss term in training: for the transformers Trainer, timm's loop, and custom loops."""

from hf_fingerprint.extras import attach as _attach


_LIBRARIES = {"timm": ("torch", "timm"), "trainer": ("torch", "transformers"), "": ("torch",)}
__getattr__, __dir__ = _attach(__name__, __file__, _LIBRARIES)
