from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app.served import Server, new_store, publish_generation, serving


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server that answers from generation 0 of eight passages."""
    store, corpus = new_store(tmp_path)
    publish_generation(store, corpus)
    with serving(store) as server:
        yield server


@pytest.fixture
def empty_server(tmp_path: Path) -> Iterator[Server]:
    """A server over a store without any generation."""
    store, _ = new_store(tmp_path)
    with serving(store) as server:
        yield server
