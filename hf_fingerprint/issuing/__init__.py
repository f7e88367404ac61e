"""Issues marked copies of a base, in the time it takes to copy the file.

    issue("org/model", "alice", vault="vault", out="copies/alice")

The mark has a closed form, `w += a * X^T b`: it needs no data, no gradient and one pass over the weights. A copy is
recorded before its first byte is written, and it appears at its path once it is complete. Run the same call again
after a crash.
"""

from hf_fingerprint.issuing.issue import issue
from hf_fingerprint.issuing.issued import IssuedCopy
from hf_fingerprint.issuing.issuer import CopyCallback, Finish, Issuer, hand_over


__all__ = ["CopyCallback", "Finish", "IssuedCopy", "Issuer", "hand_over", "issue"]
