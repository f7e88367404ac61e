"""The containers that weights come in, one file each, and which of them a file is."""
