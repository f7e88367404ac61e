"""Benchmarks: each prints figures next to their bounds, measured in one run."""
