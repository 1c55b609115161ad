"""What each kind of job does, in the process that was started for it: rebuild, promote, roll back.

Does not know who asked for it, nor who started the process.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.indexing import rebuild_or_wait
from app.job_work import JobProgress, working
from app.jobs import Jobs
from app.settings import database_url
from indexer.promotion import promote, rollback
from retriever.errors import InputError
from retriever.store import Store

REBUILD, PROMOTE, ROLLBACK = "rebuild", "promote", "rollback"

Work = Callable[[Store, dict[str, Any], JobProgress], dict[str, Any]]
"""Store, the job's parameters and its progress to the job's result."""


def run_job(store_root: Path, job_id: str) -> None:
    """Be the process of a job until it has ended. Raises InputError for a kind that this version does not know."""
    jobs = Jobs(database_url(store_root))
    try:
        with working(jobs, job_id) as progress:
            job = jobs.get(job_id)
            work = KINDS.get(job.kind)
            if work is None:
                raise InputError(f"job {job_id}: kind {job.kind!r} is unknown; there are {', '.join(KINDS)}")
            jobs.finish(job_id, work(Store(store_root), job.params, progress))
    finally:
        jobs.close()


def _rebuild(store: Store, _params: dict[str, Any], progress: JobProgress) -> dict[str, Any]:
    def report(event: str, **fields: object) -> None:
        store.log_event(event, source="refresher", **fields)

    generation = rebuild_or_wait(store, report, progress)
    return {"generation": generation.number, "gate": generation.facts["gate"]}


def _promote(store: Store, params: dict[str, Any], progress: JobProgress) -> dict[str, Any]:
    progress("promote", 0, 1)
    return promote(store, params["number"], force=params["force"])


def _rollback(store: Store, _params: dict[str, Any], progress: JobProgress) -> dict[str, Any]:
    progress("rollback", 0, 1)
    return rollback(store)


KINDS: dict[str, Work] = {REBUILD: _rebuild, PROMOTE: _promote, ROLLBACK: _rollback}
