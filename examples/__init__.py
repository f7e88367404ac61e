"""Examples of every use of hf_fingerprint, and the benchmarks behind its figures."""
