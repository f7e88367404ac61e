"""Mark every recipient's copy of an image classifier; trace a leaked one; prove how unlikely a false accusation is.

```python
from hf_fingerprint import Vault, issue, trace

vault = Vault.create("vault", passphrase)
issue("org/model", "alice", vault, "copies/alice")
vault.unlock(passphrase)
trace("org/suspect", vault).accused
```
"""

import lazy_loader


__version__ = "0.2.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
