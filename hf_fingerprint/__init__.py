"""Mark every recipient's copy of an image classifier; trace a leaked one; prove how unlikely a false accusation is.

```python
from hf_fingerprint import Vault, issue, trace

vault = Vault.create("vault", passphrase)
issue("org/model", "alice", vault, "copies/alice")
vault.unlock(passphrase)
print(trace("org/suspect", vault))
```

`dir(hf_fingerprint)` lists the public names. Each loads when it is first used; those of training need the extra
`models`.
"""

from hf_fingerprint.extras import attach as _attach


__version__ = "0.2.0"
_LIBRARIES = {
    "training.fingerprint": ("torch",),
    "training.loss": ("torch",),
    "training.timm": ("torch", "timm"),
    "training.trainer": ("torch", "transformers"),
}
__getattr__, __dir__ = _attach(__name__, __file__, _LIBRARIES)
