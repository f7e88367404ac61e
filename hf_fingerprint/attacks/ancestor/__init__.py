"""Attacks with the public model from which the base was fine-tuned: its ancestor."""
