"""Whether a server is about to end: it is not ready any more, yet still answers.

Does not know signals, nor who asks.
"""

from threading import Event

from fastapi import FastAPI


def set_up(app: FastAPI) -> None:
    """Let ``app`` know whether it drains: not yet."""
    app.state.draining = Event()


def start_draining(app: FastAPI) -> None:
    """Say that ``app`` takes no new work for long."""
    app.state.draining.set()


def is_draining(app: FastAPI) -> bool:
    """Tell whether ``app`` is about to end."""
    draining: Event = app.state.draining
    return draining.is_set()
