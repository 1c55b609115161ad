import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app import keys as keys_module
from app.keys import Keys
from retriever.errors import InputError


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[Keys]:
    table = Keys(f"sqlite:///{tmp_path / 'hone.db'}")
    yield table
    table.close()


def test_a_key_is_found_by_its_secret_alone(keys: Keys, tmp_path: Path) -> None:
    secret, key = keys.create("ann", ["search", "mine", "search"], 10)
    found = keys.find(secret)
    assert found is not None and (found.id, found.scopes, found.per_minute) == (key.id, ["mine", "search"], 10)
    altered = secret[:-1] + ("a" if secret[-1] != "a" else "b")
    for other in ("", "hone", secret[:-1], secret + "x", altered, f"hone_{key.id}_", f"hone_none_{secret[-43:]}"):
        assert keys.find(other) is None, other


def test_only_a_hash_is_kept(keys: Keys, tmp_path: Path) -> None:
    secret, key = keys.create("ann", ["search"])
    keys.close()
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert key.id.encode() in kept and secret.rpartition("_")[2].encode() not in kept


def test_scopes_and_admin(keys: Keys) -> None:
    _, reader = keys.create("reader", ["search"])
    _, boss = keys.create("boss", ["admin"])
    assert reader.may("search") and not reader.may("write") and boss.may("write")


@pytest.mark.parametrize(("scopes", "per_minute"), [([], None), (["serach"], None), (["search"], 0)])
def test_a_key_that_could_do_nothing_is_refused(keys: Keys, scopes: list[str], per_minute: int | None) -> None:
    with pytest.raises(InputError):
        keys.create("ann", scopes, per_minute)
    assert keys.all() == [] and not keys.any_valid()


def test_a_revoked_key_lets_nobody_in_once_it_is_looked_up_again(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    secret, key = keys.create("ann", ["search"])
    assert keys.find(secret) is not None and keys.any_valid()
    assert keys.revoke(key.id) and not keys.revoke(key.id) and not keys.revoke("none")
    assert not keys.any_valid() and keys.all()[0].revoked is not None
    later = time.monotonic() + keys_module.REMEMBERED_SECONDS
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert keys.find(secret) is None


def test_what_is_remembered_is_bounded(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_module, "REMEMBERED_KEYS", 3)
    for number in range(10):
        assert keys.find(f"hone_{number}_guess") is None
    assert len(keys._remembered) <= 3
