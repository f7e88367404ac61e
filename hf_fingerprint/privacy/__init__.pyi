from .bottleneck import Bottleneck as Bottleneck
from .calibration import (
    NoiseCalibration as NoiseCalibration,
)
from .calibration import (
    calibrate_noise as calibrate_noise,
)
from .calibration import (
    train_against_adversary as train_against_adversary,
)
from .decoder import ImageDecoder as ImageDecoder
from .decoder import ReconstructionQuality as ReconstructionQuality
from .denoising import Denoiser as Denoiser
from .denoising import release as release
from .denoising import train_denoiser as train_denoiser
from .frozen_segment import FrozenSegment as FrozenSegment
from .leakage import (
    Membership as Membership,
)
from .leakage import (
    matching_auc as matching_auc,
)
from .leakage import (
    measure_membership as measure_membership,
)
from .leakage import (
    measure_reconstruction as measure_reconstruction,
)
from .leakage import (
    train_decoder as train_decoder,
)
from .loops import data_holder_loop as data_holder_loop
from .loops import encode_images as encode_images
from .loops import owner_loop as owner_loop
from .noise import ImageNoise as ImageNoise
from .partition import Partition as Partition
from .student import Student as Student
from .student import init_task_directions as init_task_directions
