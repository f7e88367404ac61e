"""Mark every recipient's copy of an image classifier; trace a leaked one; prove how unlikely a false accusation is.

```python
from hf_fingerprint import Vault, issue, trace

vault = Vault.create("vault", passphrase)
issue("org/model", "alice", vault, "copies/alice")
vault.unlock(passphrase)
trace("org/suspect", vault).accused
```
"""

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from hf_fingerprint.blackbox import QueryResult, make_trigger_set, query
    from hf_fingerprint.config import FingerprintConfig
    from hf_fingerprint.errors import FingerprintError
    from hf_fingerprint.issuing import IssuedCopy, Issuer, issue
    from hf_fingerprint.registration import register
    from hf_fingerprint.tracing import RecipientScore, TraceResult, trace, verify
    from hf_fingerprint.vault import Vault

__version__ = "0.1.0"
__all__ = [
    "FingerprintConfig",
    "FingerprintError",
    "IssuedCopy",
    "Issuer",
    "QueryResult",
    "RecipientScore",
    "TraceResult",
    "Vault",
    "issue",
    "make_trigger_set",
    "query",
    "register",
    "trace",
    "verify",
]
_HOMES = {
    "FingerprintError": "errors",
    "QueryResult": "blackbox",
    "make_trigger_set": "blackbox",
    "query": "blackbox",
    "IssuedCopy": "issuing",
    "Issuer": "issuing",
    "issue": "issuing",
    "FingerprintConfig": "config",
    "register": "registration",
    "RecipientScore": "tracing",
    "TraceResult": "tracing",
    "trace": "tracing",
    "verify": "tracing",
    "Vault": "vault",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
