"""What each kind of job does, in the process that was started for it: rebuild, promote, roll back, mine.

Does not know who asked for it, nor who started the process.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.indexing import rebuild_or_wait
from app.job_work import JobProgress, working
from app.jobs import Job, Jobs
from app.mining_job import MINE, mine_parts
from app.opening import open_generation_encoder
from app.priority import Priority, yield_to_others
from app.settings import database_url
from app.snapshot import Openers
from indexer.promotion import promote, rollback
from retriever.errors import InputError
from retriever.store import Store

REBUILD, PROMOTE, ROLLBACK = "rebuild", "promote", "rollback"

Work = Callable[[Store, Jobs, Job, JobProgress], dict[str, Any]]
"""Store, the table of jobs, the job and its progress to the job's result."""


def run_job(store_root: Path, job_id: str, priority: Priority = Priority.LOW) -> None:
    """Be the process of a job until it has ended; what takes long runs at ``priority``.

    Raises InputError for a kind that this version does not know.
    """
    jobs = Jobs(database_url(store_root))
    try:
        with working(jobs, job_id) as progress:
            job = jobs.get(job_id)
            work = KINDS.get(job.kind)
            if work is None:
                raise InputError(f"job {job_id}: kind {job.kind!r} is unknown; there are {', '.join(KINDS)}")
            if job.kind in LONG:
                yield_to_others(priority)
            jobs.finish(job_id, work(Store(store_root), jobs, job, progress))
    finally:
        jobs.close()


def _rebuild(store: Store, _jobs: Jobs, _job: Job, progress: JobProgress) -> dict[str, Any]:
    def report(event: str, **fields: object) -> None:
        store.log_event(event, source="refresher", **fields)

    generation = rebuild_or_wait(store, report, progress)
    return {"generation": generation.number, "gate": generation.facts["gate"]}


def _promote(store: Store, _jobs: Jobs, job: Job, progress: JobProgress) -> dict[str, Any]:
    progress("promote", 0, 1)
    return promote(store, job.params["number"], force=job.params["force"])


def _rollback(store: Store, _jobs: Jobs, _job: Job, progress: JobProgress) -> dict[str, Any]:
    progress("rollback", 0, 1)
    return rollback(store)


def _mine(store: Store, jobs: Jobs, job: Job, progress: JobProgress) -> dict[str, Any]:
    return mine_parts(store, Openers(open_generation_encoder), jobs, job, progress)


KINDS: dict[str, Work] = {REBUILD: _rebuild, PROMOTE: _promote, ROLLBACK: _rollback, MINE: _mine}
LONG = (REBUILD, MINE)
