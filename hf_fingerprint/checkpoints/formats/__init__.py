"""File formats of weights, and their detection."""
