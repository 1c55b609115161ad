"""The process of a job in tests: does what its first argument says, then the job that its last one names."""

import os
import sys
import time

from app.job_work import working
from app.jobs import Jobs


def main(action: str, job_id: str) -> None:
    """Be the process of ``job_id``."""
    if action == "crash":
        print("out of luck", flush=True)
        os.abort()
    if action == "hang":
        time.sleep(600)
    jobs = Jobs(os.environ["DATABASE_URL"])
    with working(jobs, job_id) as progress:
        if action == "silent":
            return
        for done in range(6001):
            progress("count", done, 6000)
            if action == "slow":
                time.sleep(0.01)
        jobs.finish(job_id, {"generation": 1})


if __name__ == "__main__":
    main(*sys.argv[1:])
