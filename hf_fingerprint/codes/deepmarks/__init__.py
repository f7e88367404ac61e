"""The codes of DeepMarks (arXiv 1804.03648): block designs, and soft decoding with a proven bound."""
