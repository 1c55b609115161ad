"""Jobs as rows of one SQL table: what was asked for, who does it, how far it is, how it ended.

Does not know what a job does, nor how its process is started.
"""

import time
import uuid
from collections.abc import Sequence
from typing import Any, Literal

from sqlalchemy import (
    JSON,
    ColumnElement,
    Index,
    LargeBinary,
    String,
    Text,
    delete,
    func,
    literal_column,
    select,
    true,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, Session, mapped_column, sessionmaker

from app.database import Row, open_database
from retriever.errors import HoneError

QUEUED, RUNNING, DONE, FAILED, CANCELLED = STATES = ("queued", "running", "done", "failed", "cancelled")
ACTIVE = (QUEUED, RUNNING)
KEPT_RESULTS = 10
"""Jobs of a kind, the newest, whose parts are kept."""

_is_active: ColumnElement[bool] = literal_column(f"state IN {ACTIVE}")


class Cancelled(HoneError):
    """Raised inside a job that is to stop: it was cancelled, or given up for lost."""


class UnknownJobError(HoneError):
    """No job has this id."""


class TooLateError(HoneError):
    """The job is done: there is nothing left to cancel."""


class Job(Row):
    """One job; times are seconds since 1970 in UTC, ``done`` and ``total`` count the units of its ``phase``.

    A queued job without a ``host`` waits for whoever may write to the store. ``attempts`` counts who took it; ``token``
    rises whenever it changes hands, and only the process that began with the last one may write (a fencing token).
    ``counted``: some server's metrics hold what it made.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        Index("one_active_job_a_kind", "kind", unique=True, sqlite_where=_is_active, postgresql_where=_is_active),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    kind: Mapped[str] = mapped_column(String(32))
    state: Mapped[str] = mapped_column(String(16), default=QUEUED, index=True)
    phase: Mapped[str] = mapped_column(String(64), default="")
    done: Mapped[int] = mapped_column(default=0)
    total: Mapped[int] = mapped_column(default=0)
    rate: Mapped[float | None]
    eta_seconds: Mapped[float | None]
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    error: Mapped[str | None] = mapped_column(Text)
    created: Mapped[float]
    updated: Mapped[float]
    started: Mapped[float | None]
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    host: Mapped[str] = mapped_column(String(255), default="", server_default="")
    pid: Mapped[int | None]
    phase_started: Mapped[float] = mapped_column(default=0.0)
    phase_offset: Mapped[int] = mapped_column(default=0)
    params: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict, server_default="{}")
    token: Mapped[int] = mapped_column(default=0, server_default="0")
    attempts: Mapped[int] = mapped_column(default=0, server_default="0")
    counted: Mapped[bool] = mapped_column(default=False, server_default=true())  # of an earlier version: no news

    def advance(self, phase: str, done: int, total: int) -> None:
        """Set progress, rate and remaining seconds; what a phase re-used before its first report is not its rate."""
        now = time.time()
        if phase != self.phase:
            self.phase, self.phase_started, self.phase_offset = phase, now, done
        elapsed, fresh = now - self.phase_started, done - self.phase_offset
        self.rate = fresh / elapsed if elapsed > 0 and fresh > 0 else None
        self.eta_seconds = (total - done) / self.rate if self.rate and total >= done else None
        self.done, self.total, self.updated = done, total, now


class JobPart(Row):
    """A piece of what a job was ``asked`` for or of what it ``made``: bytes, numbered from 0, and ``facts`` on them."""

    __tablename__ = "job_parts"

    job_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    side: Mapped[str] = mapped_column(String(8), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    data: Mapped[bytes] = mapped_column(LargeBinary)
    facts: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)


Side = Literal["asked", "made"]


class Jobs:
    """The table of jobs behind a database URL; one object serves many threads.

    At most one job of a kind is queued or running: the database itself holds to that.
    """

    def __init__(self, url: str) -> None:
        """Connect and create the table if it is not there. Raises InputError naming DATABASE_URL if that fails."""
        self.url = url
        self._engine = open_database(url)
        self._session: sessionmaker[Session] = sessionmaker(self._engine, expire_on_commit=False)
        self._held: dict[str, int] = {}

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    def create(self, kind: str, params: dict[str, Any] | None = None, asked: Sequence[bytes] = ()) -> tuple[Job, bool]:
        """Return a new queued job and True, or the one of this ``kind`` that is queued or running and False.

        ``asked`` is what the job works on, in parts. What older jobs of the kind made is dropped but for the newest
        KEPT_RESULTS.
        """
        while True:
            now = time.time()
            job = Job(id=uuid.uuid4().hex, kind=kind, params=params or {}, created=now, updated=now)
            try:
                with self._session.begin() as session:
                    session.add(job)
                    session.flush()
                    parts = enumerate(asked)
                    session.add_all(JobPart(job_id=job.id, side="asked", number=n, data=part) for n, part in parts)
                    _drop_old_parts(session, kind)
                return job, True
            except IntegrityError:
                for active in self.active():
                    if active.kind == kind:
                        return active, False

    def get(self, job_id: str) -> Job:
        """Return a job as it stands now. Raises UnknownJobError."""
        with self._session() as session:
            job = session.get(Job, job_id) if job_id.isalnum() else None  # PostgreSQL takes no zero byte
        if job is None:
            raise UnknownJobError(f"there is no job {job_id!r}; GET /v1/jobs lists them")
        return job

    def newest(self, limit: int) -> list[Job]:
        """Return at most ``limit`` jobs, newest first."""
        with self._session() as session:
            return list(session.scalars(select(Job).order_by(Job.created.desc(), Job.id).limit(limit)))

    def active(self) -> list[Job]:
        """Return the jobs that are queued or running."""
        with self._session() as session:
            return list(session.scalars(select(Job).where(Job.state.in_(ACTIVE))))

    def counts(self) -> dict[str, int]:
        """Return the number of jobs in each state."""
        with self._session() as session:
            found = session.execute(select(Job.state, func.count()).group_by(Job.state)).all()
        return dict.fromkeys(STATES, 0) | {row[0]: row[1] for row in found}

    def newly_done(self, kind: str) -> list[dict[str, Any]]:
        """Return the results of the done jobs of ``kind`` that nobody was given yet: of all who ask one gets each."""
        news = (Job.kind == kind, Job.state == DONE, Job.counted.is_(False))
        with self._session() as session:  # a look first: it locks nothing, and mostly there are no news
            if session.scalar(select(Job.id).where(*news).limit(1)) is None:
                return []
        change = update(Job).where(*news).values(counted=True).returning(Job.result)
        with self._session.begin() as session:
            return [result for result in session.scalars(change) if result is not None]

    def request_cancel(self, job_id: str) -> bool:
        """Ask a job to stop, a queued one at once; False if nothing runs that could stop. May be repeated.

        Raises UnknownJobError, and TooLateError if the job is done.
        """
        self.get(job_id)
        if self._change(job_id, (QUEUED,), state=CANCELLED):
            return True
        if self._change(job_id, (RUNNING,), cancel_requested=True):
            return True
        if self.get(job_id).state == DONE:
            raise TooLateError(f"job {job_id} is done: too late to cancel it")
        return False

    def take(self, host: str) -> Job | None:
        """Return the oldest queued job that nobody has taken, now taken by ``host``; None if there is none."""
        waiting = (Job.state == QUEUED, Job.host == "")
        oldest = select(Job.id).where(*waiting).order_by(Job.created, Job.id).limit(1).scalar_subquery()
        taken = {"host": host, "pid": None, "attempts": Job.attempts + 1, "updated": time.time()}
        with self._session.begin() as session:
            change = update(Job).where(Job.id == oldest, *waiting).values(taken).returning(Job)
            return session.execute(change).scalar_one_or_none()

    def give_back(self, job: Job) -> bool:
        """Let an active job wait for somebody else, who goes on; False if ``job`` is not how it stands any more.

        Whoever had it can write no more.
        """
        counts = {"phase": "", "done": 0, "total": 0, "phase_offset": 0, "rate": None, "eta_seconds": None}
        again = {"state": QUEUED, "host": "", "pid": None, "token": job.token + 1, **counts}
        return self._change(job.id, ACTIVE, *_as_seen(job), **again)

    def begin(self, job_id: str, pid: int) -> None:
        """Mark a queued job as running in process ``pid``. Raises Cancelled if it no longer waits.

        From then on this object writes to it only for as long as nobody else has been given the job.
        """
        now = {"state": RUNNING, "pid": pid, "token": Job.token + 1, "started": time.time(), "updated": time.time()}
        change = update(Job).where(Job.id == job_id, Job.state == QUEUED).values(now).returning(Job.token)
        with self._session.begin() as session:
            token = session.execute(change).scalar_one_or_none()
        if token is None:
            raise Cancelled(f"job {job_id} is {self.get(job_id).state} and will not run")
        self._held[job_id] = token

    def assign(self, job_id: str, pid: int) -> None:
        """Note the process of a job that was just started."""
        self._change(job_id, ACTIVE, pid=pid)

    def beat(self, job_id: str) -> None:
        """Show that the job's process lives, though it has no progress to report."""
        self._change(job_id, (RUNNING,))

    def progress(self, job_id: str, phase: str, done: int, total: int) -> None:
        """Note how far a running job is. Raises Cancelled if it is to stop."""
        with self._session.begin() as session:
            self._held_job(session, job_id).advance(phase, done, total)

    def finish(self, job_id: str, result: dict[str, Any]) -> bool:
        """Mark a running job as done; False if it had already ended."""
        return self._change(job_id, (RUNNING,), state=DONE, result=result, eta_seconds=0.0)

    def fail(self, job_id: str, error: str, seen: Job | None = None) -> bool:
        """Mark an active job as failed, saying why; False if it had already ended, or changed hands since ``seen``."""
        return self._change(job_id, ACTIVE, *_as_seen(seen), state=FAILED, error=error, eta_seconds=None)

    def stopped(self, job_id: str, seen: Job | None = None) -> bool:
        """Mark an active job as cancelled; False if it had already ended, or changed hands since ``seen``."""
        return self._change(job_id, ACTIVE, *_as_seen(seen), state=CANCELLED, eta_seconds=None)

    def parts(self, job_id: str, side: Side) -> dict[int, dict[str, Any]]:
        """Return the facts of a job's parts by their numbers, ascending."""
        wanted = (JobPart.job_id == job_id, JobPart.side == side)
        with self._session() as session:
            rows = session.execute(select(JobPart.number, JobPart.facts).where(*wanted).order_by(JobPart.number)).all()
        return {row.number: row.facts for row in rows}

    def part(self, job_id: str, side: Side, number: int) -> bytes:
        """Return one part. Raises UnknownJobError where there is none, or none any more."""
        with self._session() as session:
            found = session.get(JobPart, (job_id, side, number))
        if found is None:
            raise UnknownJobError(f"job {job_id}: part {number} was removed; {KEPT_RESULTS} results are kept")
        return found.data

    def keep_part(self, job_id: str, number: int, data: bytes, facts: dict[str, Any]) -> None:
        """Keep a part of what a running job made. Raises Cancelled if it is to stop."""
        with self._session.begin() as session:
            self._held_job(session, job_id)
            session.add(JobPart(job_id=job_id, side="made", number=number, data=data, facts=facts))

    def _held_job(self, session: Session, job_id: str) -> Job:
        """Return a running job to write to. Raises Cancelled if it is to stop, or somebody else has it."""
        job = session.get(Job, job_id, with_for_update=True)
        stopped = job is None or job.state != RUNNING or job.cancel_requested
        if job is None or stopped or job.token != self._held.get(job_id, job.token):
            raise Cancelled(f"job {job_id} was told to stop")
        return job

    def _change(self, job_id: str, states: tuple[str, ...], *also: ColumnElement[bool], **values: Any) -> bool:
        held = [Job.token == self._held[job_id]] if job_id in self._held else []
        where = (Job.id == job_id, Job.state.in_(states), *held, *also)
        change = update(Job).where(*where).values(updated=time.time(), **values)
        with self._session.begin() as session:
            return session.execute(change.returning(Job.id)).first() is not None


def _as_seen(job: Job | None) -> list[ColumnElement[bool]]:
    """Return what holds as long as nobody else was given ``job`` than when it was read."""
    return [] if job is None else [Job.token == job.token, Job.host == job.host]


def _drop_old_parts(session: Session, kind: str) -> None:
    newest = select(Job.id).where(Job.kind == kind).order_by(Job.created.desc(), Job.id).limit(KEPT_RESULTS)
    kept = session.scalars(newest).all()
    of_kind = select(Job.id).where(Job.kind == kind)
    session.execute(delete(JobPart).where(JobPart.job_id.in_(of_kind), JobPart.job_id.not_in(kept)))
