import socket
from pathlib import Path

import pytest

from app.serving import serve_store
from retriever.errors import InputError


def test_an_address_that_others_can_reach_needs_insecure(indexed: Path) -> None:
    with pytest.raises(InputError, match=r"0\.0\.0\.0.*--insecure"):
        serve_store(indexed, "0.0.0.0", 0)


def test_a_folder_that_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a hone store"):
        serve_store(tmp_path, "127.0.0.1", 0)


def test_a_port_in_use_is_named(indexed: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"cannot listen on 127\.0\.0\.1:{port} \(Address already in use\)"):
            serve_store(indexed, "127.0.0.1", port)
    assert not (indexed / "hone.db").exists(), "nothing was begun"
