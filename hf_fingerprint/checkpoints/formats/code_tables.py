"""The values that codes of four bits stand for."""

import numpy as np


NF4 = np.array([  # quantiles of a normal distribution (Dettmers et al. 2023, arXiv 2305.14314, appendix E)
    -1, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036, 0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1,
], np.float32)  # fmt: skip
_HALF = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
F4_E2M1 = np.concatenate([_HALF, -_HALF])  # a sign, two bits of exponent, one of mantissa (OCP microscaling formats)
