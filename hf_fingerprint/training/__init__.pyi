from .deepmarks_preset import DeepMarks as DeepMarks
from .fingerprint import Fingerprint as Fingerprint
from .fingerprint import RecordedCopy as RecordedCopy
from .loss import DeepMarksLoss as DeepMarksLoss
from .timm import (
    FingerprintCriterion as FingerprintCriterion,
)
from .timm import (
    FingerprintedModel as FingerprintedModel,
)
from .timm import (
    FingerprintTask as FingerprintTask,
)
from .trainer import (
    FingerprintCallback as FingerprintCallback,
)
from .trainer import (
    FingerprintTrainer as FingerprintTrainer,
)
from .trainer import (
    FingerprintTrainerMixin as FingerprintTrainerMixin,
)
