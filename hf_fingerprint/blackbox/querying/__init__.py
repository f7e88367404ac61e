"""A suspect is queried until an accusation is proven: e-processes, transcript and proof."""
