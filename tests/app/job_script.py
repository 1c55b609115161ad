"""The process of a job in tests: does what its first argument says, then the job that its last one names."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main(action: str, job_id: str) -> None:
    """Be the process of ``job_id``."""
    if action == "crash":
        print("out of luck", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "hang":
        time.sleep(600)
    if action == "mine":
        from app import job_kinds
        from tests.app.served import open_encoder

        job_kinds.open_generation_encoder = open_encoder  # type: ignore[attr-defined, assignment]  # no model is trained here
        job_kinds.run_job(Path(os.environ["HONE_STORE"]), job_id)
        return
    if action in ("idle", "low", "normal"):
        _wait_at(action, job_id)
    from app.job_work import working  # here, so that a crash costs no import
    from app.jobs import Jobs

    jobs = Jobs(os.environ["DATABASE_URL"])
    with working(jobs, job_id) as progress:
        if action == "silent":
            return
        for done in range(6001):
            progress("count", done, 6000)
            if action == "slow":
                time.sleep(0.01)
        jobs.finish(job_id, {"generation": 1})


def _wait_at(priority: str, job_id: str) -> None:
    """Rebuild at a priority, but wait where the work would begin."""
    from app import job_kinds
    from app.priority import Priority

    def waits(_store: object, _jobs: object, _job: object, progress: Callable[[str, int, int], None]) -> dict[str, Any]:
        progress("there", 0, 1)
        time.sleep(600)
        return {}

    job_kinds.KINDS[job_kinds.REBUILD] = waits
    job_kinds.run_job(Path(os.environ["HONE_STORE"]), job_id, Priority(priority))


if __name__ == "__main__":
    main(*sys.argv[1:])
