"""Selects a few carriers that are adjacent in the file, so that copies of a base share nearly all of their bytes.

Storage that is deduplicated by chunks then uploads and keeps only the difference. Fewer weights hold the mark, so it
is less robust; registration predicts how much less.
"""

from collections.abc import Callable, Mapping

import numpy as np

from hf_fingerprint.checkpoints import TensorInfo
from hf_fingerprint.errors import CarrierError


MAX_SHARE = 0.045


def compact_window(
    tensors: Mapping[str, TensorInfo], names: list[str], spend: Callable[[np.ndarray], np.ndarray], where: str
) -> np.ndarray:
    """The carriers with the highest expected score among those that span at most 4.5 % of the weights' bytes.

    Args:
        tensors (mapping): all tensors of the model.
        names (`list[str]`): all tensors that can carry.
        spend (callable): maps the indices of some of them to their `eps`, shape `(len(indices),)`.
        where (`str`): the model's name, for errors.

        Returns:
            `np.ndarray`: their indices in `names`, ascending. The score after a drift grows with their `sum(n eps^2)`.

    Raises:
        [`CarrierError`]: if every carrier is larger than that.
    """
    max_bytes = MAX_SHARE * sum(info.nbytes for info in tensors.values())
    infos = [tensors[name] for name in names]
    order = sorted(range(len(names)), key=lambda i: (infos[i].file, infos[i].offset))
    best, most = None, 0.0
    for first, begin in enumerate(order):
        window = []
        for i in order[first:]:
            span = infos[i].offset + infos[i].nbytes - infos[begin].offset
            if infos[i].file != infos[begin].file or span > max_bytes:
                break
            window.append(i)
        if window:
            indices = np.array(sorted(window))
            weights = np.array([infos[i].rows * infos[i].columns for i in indices])
            worth = float((weights * spend(indices) ** 2).sum())
            if worth > most:
                best, most = indices, worth
    if best is None:
        size = f"{MAX_SHARE:.1%} of its bytes"
        raise CarrierError(f"{where} has no carrier of at most {size}: choose --carriers spread.")
    return best
