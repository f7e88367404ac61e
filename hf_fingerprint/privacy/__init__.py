"""Private training: images stay with their holder, the owner trains and marks the model's back; leakage is measured.

```python
partition = Partition(model, at="blocks.2", size=(3, 64, 64))
bottleneck = Bottleneck(partition.shape, channels=33, whole=True)
start_with_task_directions(partition, bottleneck, features := partition.front(public_images))
calibrate(bottleneck, features, public_images, target_ssim=0.38)

# process 0, the owner's: a reader of codes first, then the back, which the reader's opinion also teaches
owner_loop(partition, bottleneck, None, optimizer_of_reader, steps=600, reader=reader)
owner_loop(partition, bottleneck, train_denoiser(bottleneck, features), optimizer, steps=600, more_loss=on_public)
# each other process, twice
holder_loop(partition, bottleneck, images, labels, ImageNoise(secret), steps=600)

release(partition, features)  # an ordinary model
```

After SECUREMARK-DL ("privacy partitioning", arXiv 2207.04668), of which only the abstract exists: the design is our
own.
"""

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from hf_fingerprint.privacy.bottleneck import Bottleneck
    from hf_fingerprint.privacy.calibration import NoiseCalibration, calibrate_noise, train_against_adversary
    from hf_fingerprint.privacy.decoder import ImageDecoder, ReconstructionQuality
    from hf_fingerprint.privacy.denoising import Denoiser, release, train_denoiser
    from hf_fingerprint.privacy.frozen_segment import FrozenSegment
    from hf_fingerprint.privacy.leakage import (
        Membership,
        matching_auc,
        measure_membership,
        measure_reconstruction,
        train_decoder,
    )
    from hf_fingerprint.privacy.loops import data_holder_loop, encode_images, owner_loop
    from hf_fingerprint.privacy.noise import ImageNoise
    from hf_fingerprint.privacy.partition import Partition
    from hf_fingerprint.privacy.student import Student, init_task_directions

_HOMES = {
    "Bottleneck": "bottleneck",
    "NoiseCalibration": "calibration",
    "ImageDecoder": "decoder",
    "Denoiser": "denoising",
    "ImageNoise": "noise",
    "FrozenSegment": "frozen_segment",
    "Membership": "leakage",
    "Partition": "partition",
    "Student": "student",
    "ReconstructionQuality": "decoder",
    "calibrate_noise": "calibration",
    "data_holder_loop": "loops",
    "matching_auc": "leakage",
    "measure_membership": "leakage",
    "owner_loop": "loops",
    "measure_reconstruction": "leakage",
    "release": "denoising",
    "encode_images": "loops",
    "init_task_directions": "student",
    "train_against_adversary": "calibration",
    "train_decoder": "leakage",
    "train_denoiser": "denoising",
}
__all__ = [
    "Bottleneck",
    "Denoiser",
    "FrozenSegment",
    "ImageDecoder",
    "ImageNoise",
    "Membership",
    "NoiseCalibration",
    "Partition",
    "ReconstructionQuality",
    "Student",
    "calibrate_noise",
    "data_holder_loop",
    "encode_images",
    "init_task_directions",
    "matching_auc",
    "measure_membership",
    "measure_reconstruction",
    "owner_loop",
    "release",
    "train_against_adversary",
    "train_decoder",
    "train_denoiser",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
