"""Keras and other HDF5 files."""
