"""People's judgements on pairs of query and passage, as rows of one SQL table to which is only ever added.

Does not know HTTP, nor what follows from a judgement.
"""

import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sqlalchemy import String, Text, func, select
from sqlalchemy.orm import Mapped, Session, mapped_column, sessionmaker

from app.database import Row, one_at_a_time, open_database
from retriever.data import duplicate_hash, hash64

KEYS_AT_ONCE = 1000
"""Queries that one statement asks for: a database allows so many parameters and not many more."""

Pair = tuple[str, int]
"""A query's key and the ``duplicate_hash`` of a passage's text: what a judgement is about."""


class StoredJudgement(Row):
    """What one judge said once; ``id`` rises from each to the next, ``created`` is in seconds since 1970 in UTC.

    ``query_key`` is that of ``query_key``, ``text_hash`` the passage's ``duplicate_hash`` in hexadecimal digits,
    ``passage`` its id in ``generation``. ``grade`` above 0 is relevant. ``key_id``: the key that it came with.
    """

    __tablename__ = "judgements"

    id: Mapped[int] = mapped_column(primary_key=True)
    query_key: Mapped[str] = mapped_column(String(24), index=True)
    query_id: Mapped[str | None] = mapped_column(Text)
    query_text: Mapped[str | None] = mapped_column(Text)
    passage: Mapped[str] = mapped_column(Text)
    text_hash: Mapped[str] = mapped_column(String(16))
    grade: Mapped[int]
    judge: Mapped[str] = mapped_column(String(255))
    key_id: Mapped[str | None] = mapped_column(String(16))
    note: Mapped[str | None] = mapped_column(Text)
    generation: Mapped[int]
    created: Mapped[float]

    @property
    def pair(self) -> Pair:
        """What it is about."""
        return self.query_key, int(self.text_hash, 16)


class Said(NamedTuple):
    """A judgement that is to be stored; ``text`` is the query's, ``text_hash`` that of the passage's text."""

    query_id: str | None
    text: str | None
    passage: str
    text_hash: int
    grade: int
    judge: str
    note: str | None

    @property
    def pair(self) -> Pair:
        """What it is about."""
        return query_key(self.query_id, self.text), self.text_hash


def query_key(query_id: str | None, text: str | None) -> str:
    """Return what two names of the same query share: of its text but for case and white space, else of its id.

    Ids are anybody's: whoever says the text as well means that text, under whatever id it is asked for.
    """
    return f"id:{hash64(query_id or ''):016x}" if text is None else f"text:{duplicate_hash(text):016x}"


class Judgements:
    """The table of judgements behind a database URL; one object serves many threads."""

    def __init__(self, url: str) -> None:
        """Connect. Raises InputError naming DATABASE_URL if that fails."""
        self._engine = open_database(url)
        self._session: sessionmaker[Session] = sessionmaker(self._engine, expire_on_commit=False)

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    def add(self, said: Sequence[Said], generation: int, key_id: str | None = None) -> int:
        """Store what was ``said`` of passages of ``generation``, all or nothing, and return how many are new.

        What is a judge's last word on the pair already, note included, is not stored again; another word is a new row.
        """
        now, new = time.time(), 0
        with self._session.begin() as session:
            one_at_a_time(session.connection())  # or two that say the same at once would both be new
            last = {(row.pair, row.judge): row for row in _rows(session, [one.pair[0] for one in said])}
            for one in said:
                (key, text_hash), before = one.pair, last.get((one.pair, one.judge))
                if before is not None and (before.grade, before.note) == (one.grade, one.note):
                    continue
                row = StoredJudgement(
                    query_key=key,
                    query_id=one.query_id,
                    query_text=one.text,
                    passage=one.passage,
                    text_hash=f"{text_hash:016x}",
                    grade=one.grade,
                    judge=one.judge,
                    key_id=key_id,
                    note=one.note,
                    generation=generation,
                    created=now,
                )
                session.add(row)
                last[one.pair, one.judge] = row
                new += 1
        return new

    def newest(self, limit: int, before: int | None = None) -> list[StoredJudgement]:
        """Return at most ``limit`` judgements, newest first, of those whose id is below ``before``."""
        wanted = select(StoredJudgement).order_by(StoredJudgement.id.desc()).limit(limit)
        if before is not None:
            wanted = wanted.where(StoredJudgement.id < before)
        with self._session() as session:
            return list(session.scalars(wanted))

    def position(self) -> int:
        """Return the id of the newest judgement, 0 where there is none: what is asked up to it never changes."""
        with self._session() as session:
            return session.scalar(select(func.max(StoredJudgement.id))) or 0

    def all(self) -> list[StoredJudgement]:
        """Return every judgement, oldest first."""
        with self._session() as session:
            return list(session.scalars(select(StoredJudgement).order_by(StoredJudgement.id)))

    def on(self, queries: Sequence[tuple[str, str]], position: int) -> list[dict[int, int]]:
        """Return the settled grades of each of ``queries`` (id, text), by the hashes of passages' texts.

        Judgements count up to ``position``, those on the query's text and those that named its id alone.
        """
        keys = [(query_key(None, text), query_key(query_id, None)) for query_id, text in queries]
        found: dict[str, list[StoredJudgement]] = {}
        if position:
            with self._session() as session:
                for row in _rows(session, [key for both in keys for key in both]):
                    if row.id <= position:
                        found.setdefault(row.query_key, []).append(row)
        return [settled([row for key in both for row in found.get(key, ())]) for both in keys]


def settled(judgements: Iterable[StoredJudgement]) -> dict[int, int]:
    """Return the grades of one query's judgements by the hashes of passages' texts.

    The last word of each judge counts; of several judges the middle grade, of two in the middle the higher: what half
    of them call relevant is no negative.
    """
    last = {(row.text_hash, row.judge): row.grade for row in sorted(judgements, key=lambda row: row.id)}
    grades: dict[int, list[int]] = {}
    for (text_hash, _), grade in last.items():
        grades.setdefault(int(text_hash, 16), []).append(grade)
    return {text_hash: sorted(said)[len(said) // 2] for text_hash, said in grades.items()}


def _rows(session: Session, keys: Iterable[str]) -> list[StoredJudgement]:
    """Return the judgements on the queries of ``keys``, oldest first of each."""
    found: list[StoredJudgement] = []
    asked = [*dict.fromkeys(keys)]
    for start in range(0, len(asked), KEYS_AT_ONCE):
        some = asked[start : start + KEYS_AT_ONCE]
        wanted = select(StoredJudgement).where(StoredJudgement.query_key.in_(some))
        found += session.scalars(wanted.order_by(StoredJudgement.id))
    return found
