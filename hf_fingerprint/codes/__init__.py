"""Codes for recipients: codewords from copy keys, scores, bounds on false accusation, joint decoding.

Nothing here knows what a model is.
"""

from hf_fingerprint.choices import FAMILIES, FORGERIES
from hf_fingerprint.codes.bounds import MAX_ALPHA, check_alpha
from hf_fingerprint.codes.certified import certify
from hf_fingerprint.codes.coalition import coalition_by_formula, coalition_by_simulation
from hf_fingerprint.codes.codebook import Codebook
from hf_fingerprint.codes.collusion import forge
from hf_fingerprint.codes.decoding import decode, decode_all, decode_readings, prove_codeword
from hf_fingerprint.codes.design import CodeDesign, design_code
from hf_fingerprint.codes.fair_signs import FairSigns
from hf_fingerprint.codes.nuida import Nuida
from hf_fingerprint.codes.tardos import Tardos
from hf_fingerprint.errors import CodeError


def make_codebook(family: str, length: int, coalition: int, secret: bytes) -> Codebook:
    """Makes the codebook of a base from its record in the vault.

    Args:
        family (`str`): `"tardos"`, `"nuida"` or `"fair_signs"`.
        length (`int`): V, the number of positions.
        coalition (`int`): the number of colluders that the code is designed for.
        secret (`bytes`): the model secret.

    Raises:
        [`CodeError`]: if this version doesn't know the family.
    """
    if family == FairSigns.family:
        return FairSigns(length)
    if family not in FAMILIES:
        raise CodeError(f"This version of hf-fingerprint doesn't know the code {family}: upgrade it.")
    return (Nuida if family == Nuida.family else Tardos)(length, coalition, secret)


__all__ = [
    "FAMILIES",
    "FORGERIES",
    "MAX_ALPHA",
    "CodeDesign",
    "Codebook",
    "FairSigns",
    "Nuida",
    "Tardos",
    "certify",
    "check_alpha",
    "coalition_by_formula",
    "coalition_by_simulation",
    "decode",
    "decode_all",
    "decode_readings",
    "design_code",
    "forge",
    "make_codebook",
    "prove_codeword",
]
