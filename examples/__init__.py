"""What a user of hf_fingerprint reads first, and what its figures come from."""
