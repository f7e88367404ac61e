"""Shared by the examples and benchmarks: real inputs, a training loop, tables, plots."""
