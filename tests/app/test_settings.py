from pathlib import Path

import pytest

from app.settings import Settings, database_url
from retriever.errors import InputError


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HONE_STORE", "HONE_HOST", "HONE_PORT", "HONE_RANKER", "HONE_DATABASE_URL", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)


def test_without_an_environment_the_store_lies_here_and_the_server_is_private() -> None:
    settings = Settings()
    assert (settings.store, settings.host, settings.port) == (Path("store"), "127.0.0.1", 8000)


def test_the_environment_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HONE_STORE", "/srv/store")
    monkeypatch.setenv("HONE_HOST", "::1")
    monkeypatch.setenv("HONE_PORT", "9000")
    settings = Settings()
    assert (settings.store, settings.host, settings.port) == (Path("/srv/store"), "::1", 9000)


@pytest.mark.parametrize("port", ["many", "-1", "70000", ""])
def test_a_port_that_is_none_names_the_variable(monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    monkeypatch.setenv("HONE_PORT", port)
    with pytest.raises(InputError, match=f"^HONE_PORT={port}: "):
        Settings()


def test_jobs_are_kept_beside_the_artifacts_unless_a_database_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert database_url(Path("/srv/store")) == "sqlite:////srv/store/hone.db"
    monkeypatch.setenv("HONE_DATABASE_URL", "postgresql://one")
    assert database_url(Path("/srv/store")) == "postgresql://one"
    monkeypatch.setenv("DATABASE_URL", "postgresql://two")
    assert database_url(Path("/srv/store")) == "postgresql://two"
