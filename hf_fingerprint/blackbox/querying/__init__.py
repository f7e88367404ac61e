"""Queries a suspect until an accusation is proven: e-processes, transcript and proof."""
