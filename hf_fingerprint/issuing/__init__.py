"""One marked copy for each recipient, in the time it takes to copy the file.

    issue("org/model", "alice", vault="vault", out="copies/alice")

In closed form, `w += a * X^T b`: no data, no gradient, one pass over the weights. The copy is recorded before its
first byte is written and appears in its place only when it is whole, so a crash at any point is mended by running the
same again.
"""

from hf_fingerprint.issuing.issued import IssuedCopy, PreparedCopy
from hf_fingerprint.issuing.issuer import Issuer, issue


__all__ = ["IssuedCopy", "Issuer", "PreparedCopy", "issue"]
