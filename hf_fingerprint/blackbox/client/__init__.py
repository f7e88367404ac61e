"""Suspects behind an API: the requests, retries, and the class that a response predicts."""
