"""Whether a trained model carries its mark."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np

from hf_fingerprint.checkpoints import content_hash, digest_tensors, open_checkpoint
from hf_fingerprint.codes import prove_codeword
from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.extraction.extract import extract
from hf_fingerprint.registration import open_base
from hf_fingerprint.vault import Base, Vault


def check_mark(
    folder: Path, base: Base, vault: Vault, bits: np.ndarray, unmarked: Collection[str] = ()
) -> tuple[str, float, float]:
    """A model's content hash, and the score and agreement of its mark.

    Args:
        folder (`Path`): the saved model.
        base ([`Base`]): the base that it was trained from.
        vault ([`Vault`]): the vault. It may be locked.
        bits (`np.ndarray` of shape `(V,)`): the recipient's bits, `bool`.
        unmarked (collection of `str`, *optional*): carriers that are not read. Those that did not train differ from
            the base by little or nothing, so their noise would outweigh the mark of the others.

    Raises:
        [`FingerprintError`]: unless the bits trace.
    """
    with open_checkpoint(folder) as copy, open_base(base, vault) as original:
        read = replace(base, carriers=tuple(c for c in base.carriers if c.name not in unmarked))
        found = extract(read, original, copy)
        codebook, packed, count = base.codebook(), np.packbits(bits), base.expected_recipients
        score, proven = prove_codeword(codebook, packed, found.values, found.mass, count, base.alpha)
        agreement = float(((found.values > 0) == bits)[found.mass > 0].mean()) if found.mass.any() else 0.0
        if not proven:
            raise FingerprintError(
                f"{folder} does not carry the mark that was trained (score {score:.1f}, {agreement:.0%} of its "
                f"bits), so nothing was recorded: give the trained model, or train longer or with more strength."
            )
        return content_hash(copy.tensors, digest_tensors(copy)), score, agreement
