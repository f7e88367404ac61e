"""Core ML: models, packages and compiled folders."""
