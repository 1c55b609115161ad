"""Engines turn padded token ids into vectors, each on its own library; choice.py says which one when."""
