"""How strong a mark may be: the budget on the output, spent by what a marked model is measured to do."""

from typing import TYPE_CHECKING

import numpy as np

from hf_fingerprint.carriers import TensorMarker
from hf_fingerprint.carriers.amplitude import largest_eps
from hf_fingerprint.checkpoints import Checkpoint
from hf_fingerprint.checkpoints.dtypes import to_float32
from hf_fingerprint.checkpoints.reader import block_rows
from hf_fingerprint.codes import Codebook
from hf_fingerprint.errors import CarrierError
from hf_fingerprint.keys import new_secret
from hf_fingerprint.models import BuiltModel
from hf_fingerprint.registration.sensitivity import compare_outputs
from hf_fingerprint.vault import Carrier


if TYPE_CHECKING:
    import torch


MEASUREMENTS = 8
Measured = tuple[np.ndarray, float, float]


def carriers_of(names: list[str], eps: np.ndarray, rms: dict[str, np.ndarray]) -> tuple[Carrier, ...]:
    """Carriers from each one's share of its rows' root mean squares."""
    return tuple(Carrier(name, float(e), np.float32(e) * rms[name]) for name, e in zip(names, eps, strict=True))


def measured_strength(
    checkpoint: Checkpoint,
    model: BuiltModel,
    images: "torch.Tensor",
    parameters: dict[str, str],
    eps: np.ndarray,
    rms: dict[str, np.ndarray],
    max_kl: float,
    secret: bytes,
    codebook: Codebook,
) -> Measured:
    """Scales the amplitudes until a marked model's output keeps the budget and spends most of it.

    Args:
        checkpoint ([`Checkpoint`]): the open base.
        model ([`BuiltModel`]): the same, ready to run.
        images (`torch.Tensor`): the calibration inputs.
        parameters (`dict[str, str]`): the carriers' names in the file and in the model.
        eps (`np.ndarray` of shape `(T,)`): where to begin.
        rms (`dict[str, np.ndarray]`): root mean square of each row.
        max_kl (`float`): the budget, in nats.
        secret (`bytes`): the model secret.
        codebook ([`Codebook`]): the code.

    Returns:
        `(eps, kl, agreement)`

    Raises:
        [`CarrierError`]: if no mark keeps the budget.
    """
    codeword, cap = codebook.packed([new_secret()])[0], largest_eps(max_kl)
    best: Measured | None = None
    failures = 0
    for _ in range(MEASUREMENTS):  # the second order is an estimate; the budget is spent by what is measured
        carriers = carriers_of(list(parameters), eps, rms)
        marked = {parameters[c.name]: _marked(checkpoint, c, secret, codeword) for c in carriers}
        kl, agreement = compare_outputs(model.module, images, marked)
        if kl <= max_kl:
            best = eps, kl, agreement
            if failures or kl >= 0.8 * max_kl or (eps >= cap).all():
                break
            eps = np.minimum(cap, eps * np.sqrt(0.9 * max_kl / max(kl, 0.05 * max_kl)))
        elif best is not None:
            break
        else:  # rounding to half precision costs too, and doesn't shrink with the mark: shrink faster each time
            eps = eps * np.sqrt(0.9 * max_kl / kl) * 0.9**failures
            failures += 1
    if best is None:
        raise CarrierError(
            f"{checkpoint.source.name}: no mark keeps a KL of {max_kl:.1e} on the calibration inputs, the weakest "
            f"tried has {kl:.1e}: choose a larger --max-kl."
        )
    return best


def _marked(checkpoint: Checkpoint, carrier: Carrier, secret: bytes, codeword: np.ndarray) -> np.ndarray:
    info = checkpoint.tensors[carrier.name]
    marker = TensorMarker(secret, secret, info.name, info.dtype, info.columns, carrier.amplitude, codeword)
    raw = checkpoint.read(info, out=np.empty(info.nbytes, np.uint8))
    for rows in block_rows(info):
        marker(raw[rows.start * info.row_bytes : rows.stop * info.row_bytes])
    return to_float32(raw, info.dtype).reshape(-1, info.columns)
