"""The forms in which a secret could appear in bytes, and a search for them."""

import base64
from collections.abc import Mapping

import numpy as np

from hf_fingerprint.keys import derive
from hf_fingerprint.vault import Base


def secret_forms(base: Base, key: bytes, recipient: str) -> dict[str, bytes]:
    """Returns the secrets of a base, one copy key and its recipient, by description."""
    bits = base.codebook().codeword(key)
    packed = np.packbits(bits > 0)
    found = {
        "model secret": base.secret,
        "copy key": key,
        "packed codeword": packed.tobytes()[:16],
        "packed codeword, low bit first": np.packbits(bits > 0, bitorder="little").tobytes()[:16],
        "inverted codeword": (~packed).tobytes()[:16],
        "codeword as bytes": (bits[:64] > 0).astype(np.uint8).tobytes(),
        "codeword as int8": bits[:64].astype(np.int8).tobytes(),
        "codeword as float32": bits[:32].astype(np.float32).tobytes(),
        "codeword as int64": bits[:32].astype(np.int64).tobytes(),
        "codeword as bools": ", ".join(map(str, (bits[:16] > 0).tolist())).encode(),
        "codeword as numbers": ", ".join(map(str, bits[:16].astype(int).tolist())).encode(),
        "codeword as digits": "".join(map(str, (bits[:40] > 0).astype(int).tolist())).encode(),
        "recipient": recipient.encode(),
    }
    for carrier in base.carriers:
        found[f"sign key of {carrier.name}"] = derive(base.secret, "signs", carrier.name)
        found[f"amplitude of {carrier.name}"] = np.asarray(carrier.amplitude, np.float32).tobytes()[:32]
    return found


def find_secrets(content: bytes, secrets: Mapping[str, bytes]) -> list[str]:
    """The names of the secrets that some bytes hold, also in hexadecimal, base64 or as a Python literal."""
    found = []
    for name, secret in secrets.items():
        forms = [secret, secret.hex().encode(), secret.hex().upper().encode(), repr(secret)[2:-1].encode()]
        forms += [base64.b64encode(secret).rstrip(b"=")[:-1], str(list(secret)).strip("[]").encode()]
        if any(form in content for form in forms):
            found.append(name)
    return found
