"""How libraries store quantized weights: integers whose scales are further tensors of the same file.

Each module declares the schemes of one library; `known_schemes.py` lists them.
"""
