"""Attacks on marked copies: small classes that take a state dict and an [`Attacker`], and return another state dict.

```python
suspect = MagnitudePruning(0.5)(copy)
suspect = Compose(Collusion("median"), FineTuning(1e-4))(copies, Attacker(build, images, labels))
```

Each class names its paper and its strength. `SUITE` lists all of them by name.
"""

from hf_fingerprint.extras import attach as _attach


__getattr__, __dir__ = _attach(__name__, __file__)
