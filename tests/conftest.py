"""Shared by all tests: no network, no accelerator, nothing read from or written to this user's caches."""

import os


os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ.pop("HF_FINGERPRINT_PASSPHRASE", None)
