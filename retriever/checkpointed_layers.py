"""Gradient checkpointing by transformers' own forward pass: a layer keeps its input alone, and is computed twice.

Does not know the fast path of training, which has a way of its own.
"""

from typing import Any

from retriever.errors import InputError


def checkpoint_layers(model: Any, keys: str) -> None:
    """Let each layer of ``model`` be computed again on the way back.

    Raises InputError, naming the ``keys`` that asked for it, for a model that transformers cannot train so.
    """
    newer = getattr(model, "activation_checkpointing_enable", None)  # its name since transformers 5
    try:
        (newer or model.gradient_checkpointing_enable)({"use_reentrant": False})
    except ValueError as error:
        raise InputError(f"{keys}: {error} Leave it out, or train another model") from error
