"""The one SQL database of all that changes: how it is opened, and the root of its tables.

Does not know the tables.
"""

import sqlite3
import time
from pathlib import Path

from sqlalchemy import Table, create_engine, event, inspect, text
from sqlalchemy.engine import Connection, Engine, ExceptionContext, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.schema import CreateColumn

from app.full_disk import explain, is_full
from retriever.errors import InputError

LOCK_WAIT_MS = 30_000
LOCK_TRY_SECONDS = 0.02
ONE_AT_A_TIME = {"sqlite": "BEGIN IMMEDIATE", "postgresql": "SELECT pg_advisory_xact_lock(1752133221)"}
"""What holds up whoever else says it until the end of the transaction."""


class Row(DeclarativeBase):
    """Root of the tables, as SQLAlchemy asks for."""


def open_database(url: str) -> Engine:
    """Connect, and create the tables that are not there.

    Raises InputError naming DATABASE_URL if that fails, SQLAlchemyError if there is no room for it.
    """
    try:
        place = make_url(url)
        if place.drivername in ("postgres", "postgresql"):
            place = place.set(drivername="postgresql+psycopg")  # the driver of the extra `postgres`
        engine = create_engine(place, pool_pre_ping=True)
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", _configure_sqlite)
            event.listen(engine, "handle_error", _explain)
        with engine.begin() as connection:
            one_at_a_time(connection)  # replicas of a server start at once
            Row.metadata.create_all(connection)
            for table in Row.metadata.tables.values():
                _add_missing_columns(connection, table)
    except (ArgumentError, SQLAlchemyError, ModuleNotFoundError) as error:
        if is_full(error):
            raise
        shown = str(error).splitlines()[0]
        raise InputError(
            f"the database of jobs and keys cannot be opened ({shown}); set DATABASE_URL to one that can be written, "
            "for example sqlite:////var/lib/hone/jobs.db or postgresql://user@host/name (extra postgres)"
        ) from error
    return engine


def one_at_a_time(connection: Connection) -> None:
    """Wait for whoever else said so, as the first word of a transaction, and hold up the others until its end."""
    connection.exec_driver_sql(ONE_AT_A_TIME[connection.dialect.name])


def _add_missing_columns(connection: Connection, table: Table) -> None:
    """Bring a table that an earlier version made up to date: each column that came later has a default."""
    there = {column["name"] for column in inspect(connection).get_columns(table.name)}
    for column in table.columns:
        if column.name not in there:
            definition = CreateColumn(column).compile(dialect=connection.dialect)
            connection.execute(text(f"ALTER TABLE {table.name} ADD COLUMN {definition}"))


def _configure_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.execute(f"PRAGMA busy_timeout={LOCK_WAIT_MS}")
    _write_ahead(connection)
    connection.execute("PRAGMA synchronous=FULL")  # what was answered for must outlive a power cut


def _explain(context: ExceptionContext) -> None:
    if context.engine is not None and context.engine.url.database:
        explain(context.original_exception, Path(context.engine.url.database).parent)


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Choose the write-ahead log; of several that do so first, SQLite lets the others fail and not wait."""
    deadline = time.monotonic() + LOCK_WAIT_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(LOCK_TRY_SECONDS)
