"""Benchmarks: each prints figures side by side with their bounds, out of one run."""
