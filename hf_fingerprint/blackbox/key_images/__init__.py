"""Key images: cover images that carry a recipient's fingerprint invisibly."""
