"""Suspects: the ways to send an image to a model, and the parsing of its responses."""
