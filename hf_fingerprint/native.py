"""The compiled passes over weights and codewords, where the package was built with them.

Each makes in one pass what numpy makes in several. Their callers hold the numpy version too, which is the reference.
"""

try:
    import hf_fingerprint._native as passes
except ImportError:
    passes = None  # type: ignore[assignment]
