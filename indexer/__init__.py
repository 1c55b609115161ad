"""Builds: reads `checkpoints/` and a corpus, and publishes `generations/`.

It owns the way from corpus to embedding shards, to FAISS, to a checked generation, to search, and the
invariant row = id.
"""
