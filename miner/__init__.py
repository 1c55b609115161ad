"""Chooses: reads `generations/` and publishes `negatives/`.

It owns candidate sources, filters, samplers, batch plans and audits: pure choices over ranked lists.
"""
