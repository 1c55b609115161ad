"""The side of a job that runs in its own process: begin, show life, report progress, end.

Does not know what the work is, nor who started the process.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

from sqlalchemy.exc import SQLAlchemyError

from app.jobs import Cancelled, Jobs

BEAT_SECONDS = 5.0
REPORT_SECONDS = 0.2

JobProgress = Callable[[str, int, int], None]
"""Called with (phase, units done, units in all); raises Cancelled when the job is to stop."""

log = logging.getLogger(__name__)


@contextmanager
def working(jobs: Jobs, job_id: str) -> Iterator[JobProgress]:
    """Be the process of job ``job_id`` inside the block, and end it there with ``jobs.finish(job_id, result)``.

    An exception that leaves the block is recorded as the job's end and goes on. Raises Cancelled at once if the
    job was cancelled before it began.
    """
    jobs.begin(job_id, os.getpid())
    ended = Event()
    heart = Thread(target=_beat, args=(jobs, job_id, ended), name="job-heartbeat", daemon=True)
    heart.start()
    try:
        yield _reporter(jobs, job_id)
    except Cancelled:
        jobs.stopped(job_id)
        raise
    except BaseException as error:
        jobs.fail(job_id, f"{type(error).__name__}: {error}")
        raise
    finally:
        ended.set()
        heart.join()


def _beat(jobs: Jobs, job_id: str, ended: Event) -> None:
    while not ended.wait(BEAT_SECONDS):
        try:
            jobs.beat(job_id)
        except SQLAlchemyError:  # a database that is away for a moment must not end the work
            log.exception("the heartbeat of job %s could not be written", job_id)


def _reporter(jobs: Jobs, job_id: str) -> JobProgress:
    """Pass progress on at most five times a second, yet every first and last unit of a phase.

    A database that is away for a moment does not end the work; but without it no phase begins, since whoever was given
    up for lost meanwhile would hear of it too late.
    """
    last_phase, last_time = "", 0.0

    def progress(phase: str, done: int, total: int) -> None:
        nonlocal last_phase, last_time
        now = time.monotonic()
        if phase != last_phase or done >= total or now - last_time >= REPORT_SECONDS:
            try:
                jobs.progress(job_id, phase, done, total)
            except SQLAlchemyError:
                if phase != last_phase:
                    raise
                log.exception("the progress of job %s could not be written", job_id)
            last_phase, last_time = phase, now

    return progress
