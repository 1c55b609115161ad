"""Keys that let a client in: made once, kept as a hash, each with what it may do and how often.

Does not know HTTP.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Sequence

from sqlalchemy import JSON, String, select, update
from sqlalchemy.orm import Mapped, Session, mapped_column, sessionmaker

from app.database import Row, open_database
from retriever.errors import InputError

SCOPES = SEARCH, ENCODE, MINE, WRITE, ADMIN = ("search", "encode", "mine", "write", "admin")
PREFIX = "hone"
REMEMBERED_SECONDS = 5.0
"""How long a key that was looked up is believed: it takes that long until a revocation is felt everywhere."""
REMEMBERED_KEYS = 10_000
NO_HASH = "0" * 64


class Key(Row):
    """One key: ``hash`` is SHA-256 of a secret of 256 random bits, which nobody can guess back."""

    __tablename__ = "keys"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    name: Mapped[str] = mapped_column(String(255))
    hash: Mapped[str] = mapped_column(String(64))
    scopes: Mapped[list[str]] = mapped_column(JSON)
    per_minute: Mapped[int | None]
    tokens_per_minute: Mapped[int | None]
    created: Mapped[float]
    revoked: Mapped[float | None]

    def may(self, scope: str) -> bool:
        """Tell whether the key reaches ``scope``; admin reaches all."""
        return scope in self.scopes or ADMIN in self.scopes


class Keys:
    """The table of keys behind a database URL; one object serves many threads."""

    def __init__(self, url: str) -> None:
        """Connect. Raises InputError naming DATABASE_URL if that fails."""
        self._engine = open_database(url)
        self._session: sessionmaker[Session] = sessionmaker(self._engine, expire_on_commit=False)
        self._remembered: dict[str, tuple[Key | None, float]] = {}

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    def create(
        self, name: str, scopes: Sequence[str], per_minute: int | None = None, tokens_per_minute: int | None = None
    ) -> tuple[str, Key]:
        """Return a new secret, which is kept nowhere, and its key. Raises InputError for an unknown scope or none."""
        unknown = [scope for scope in scopes if scope not in SCOPES]
        if unknown or not scopes:
            raise InputError(f"scope {unknown[0] if unknown else ''!r}: a key has one or more of {', '.join(SCOPES)}")
        for what, limit in (("requests", per_minute), ("tokens", tokens_per_minute)):
            if limit is not None and limit < 1:
                raise InputError(f"{limit} {what} a minute let nothing in; write 1 or more, or leave it out")
        name_of, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        key = Key(
            id=name_of,
            name=name,
            hash=_hash(secret),
            scopes=sorted(set(scopes)),
            per_minute=per_minute,
            tokens_per_minute=tokens_per_minute,
            created=time.time(),
        )
        with self._session.begin() as session:
            session.add(key)
        return f"{PREFIX}_{name_of}_{secret}", key

    def all(self) -> list[Key]:
        """Return every key, revoked ones too, oldest first."""
        with self._session() as session:
            return list(session.scalars(select(Key).order_by(Key.created, Key.id)))

    def any_valid(self) -> bool:
        """Tell whether there is a key that lets anybody in."""
        with self._session() as session:
            return session.scalar(select(Key.id).where(Key.revoked.is_(None)).limit(1)) is not None

    def revoke(self, key_id: str) -> bool:
        """Let a key in no more; False if there is none of this id that still was."""
        change = update(Key).where(Key.id == key_id, Key.revoked.is_(None)).values(revoked=time.time())
        with self._session.begin() as session:
            return session.execute(change.returning(Key.id)).first() is not None

    def find(self, offered: str) -> Key | None:
        """Return the valid key that a client offered, None for anything else; hashes are compared in constant time."""
        prefix, _, rest = offered.partition("_")
        name, _, secret = rest.partition("_")
        key = self._look_up(name) if prefix == PREFIX and len(name) <= 16 else None
        same = hmac.compare_digest(_hash(secret), NO_HASH if key is None else key.hash)
        return key if same and key is not None and key.revoked is None else None

    def _look_up(self, name: str) -> Key | None:
        now = time.monotonic()
        key, known_until = self._remembered.get(name, (None, 0.0))
        if now >= known_until:
            with self._session() as session:
                key = session.get(Key, name)
            if len(self._remembered) >= REMEMBERED_KEYS:
                self._remembered.clear()
            self._remembered[name] = key, now + REMEMBERED_SECONDS
        return key


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
