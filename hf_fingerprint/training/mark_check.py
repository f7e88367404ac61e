"""Whether a trained model carries its mark."""

from pathlib import Path

import numpy as np

from hf_fingerprint.checkpoints import content_hash, digest_tensors, open_checkpoint
from hf_fingerprint.codes import prove_codeword
from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.extraction import extract
from hf_fingerprint.registration import open_base
from hf_fingerprint.vault import Base, Vault


def check_mark(folder: Path, base: Base, vault: Vault, bits: np.ndarray) -> tuple[str, float, float]:
    """A model's content hash, and the score and agreement of `bits` in it. Raises an error unless they trace."""
    with open_checkpoint(folder) as copy, open_base(base, vault) as original:
        found = extract(base, original, copy)
        codebook, packed, count = base.codebook(), np.packbits(bits), base.expected_recipients
        score, proven = prove_codeword(codebook, packed, found.values, found.mass, count, base.alpha)
        agreement = float(((found.values > 0) == bits)[found.mass > 0].mean()) if found.mass.any() else 0.0
        if not proven:
            raise FingerprintError(
                f"{folder} does not carry the mark that was trained (score {score:.1f}, {agreement:.0%} of its "
                f"bits), so nothing was recorded: give the trained model, or train longer or with more strength."
            )
        return content_hash(copy.tensors, digest_tensors(copy)), score, agreement
