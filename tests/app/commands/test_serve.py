from collections.abc import Callable
from pathlib import Path

import pytest

from app.admission import AdmissionConfig
from app.commands import serve
from app.priority import Priority
from app.serving import ServeOptions
from tests.app.command_line import Hone


def test_serve_refuses_limits_that_cannot_be_met(hone: Hone, indexed: Path) -> None:
    assert "less than one batch" in hone("serve", "--store", indexed, "--queue-tokens", 100).complaint
    assert "nothing could be answered" in hone("serve", "--store", indexed, "--deadline-seconds", 0).complaint


def test_serve_listens_where_it_is_told(hone: Hone, indexed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[tuple[Path, str, int, ServeOptions]] = []

    def serve_store(root: Path, host: str, port: int, options: ServeOptions, listening: Callable[[str], None]) -> None:
        listening("http://there:4711")
        served.append((root, host, port, options))

    monkeypatch.setattr(serve, "serve_store", serve_store)
    assert "http://there:4711 " in hone("serve", "--store", indexed).err
    flags = ("--insecure", "--ranker", "one", "--workers", 2, "--drain-seconds", 1)
    limits = ("--batch-tokens", 256, "--queue-tokens", 9000, "--deadline-seconds", 2.5, "--job-priority", "low")
    hone("serve", "--store", indexed, "--port", 0, "--host", "::1", *flags, *limits)
    monkeypatch.setenv("HONE_PORT", "9000")
    monkeypatch.setenv("HONE_STORE", "there")
    monkeypatch.setenv("HONE_RANKER", "other")
    hone("serve")
    admission = AdmissionConfig(256, 256, 9000, 2.5)
    assert served == [
        (indexed, "127.0.0.1", 8000, ServeOptions()),
        (indexed, "::1", 0, ServeOptions(True, False, 2, 1, Path("one"), admission, Priority.LOW)),
        (Path("there"), "127.0.0.1", 9000, ServeOptions(ranker=Path("other"))),
    ]
    monkeypatch.setenv("HONE_PORT", "many")
    assert hone("serve").complaint.startswith("HONE_PORT=many: ")
