"""Learns: reads `negatives/` and publishes `checkpoints/`.

It owns the nouns, the ports, the encoders and rankers, the losses, the training loop, the metrics and the
artifact store.
"""
