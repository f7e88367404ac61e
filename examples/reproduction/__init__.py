"""DeepMarks (arXiv 1804.03648) reproduced: `python -m examples.reproduction.run`."""
