"""The formats of PyTorch, and the pickles in them."""
