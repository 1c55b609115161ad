"""Measures each claim side by side with the peer that it names: one module a claim, `python -m benchmarks.NAME`."""
