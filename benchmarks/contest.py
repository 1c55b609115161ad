"""The contestant's side: read a task a line, work while the clock runs, answer a line, sleep until the next.

Runs in every peer's environment, so it needs the standard library alone; does not know what is measured or by whom.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

Action = Callable[..., Mapping[str, Any]]
"""Takes the task's arguments, returns facts: JSON values and numpy arrays; a fact "seconds" goes before the clock's."""


def compete(actions: Mapping[str, Action], packages: Sequence[str]) -> None:
    """Answer tasks until stdin ends; the first answer, unasked, is the versions of ``packages`` and Python.

    A task is ``{"do": action, …arguments}``. An answer is the action's facts with ``seconds`` (wall clock of the action
    alone) and ``peak_rss`` (bytes, of the process so far); arrays are saved in the folder ``sys.argv[1]`` and their
    paths answered, after the clock stopped. An exception ends the process with its traceback on stderr.
    """
    _pin()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not end up between the answers
    scratch = Path(sys.argv[1])
    versions = {"python": sys.version.split()[0], **{package: _version(package) for package in packages}}
    print(json.dumps(versions), file=answers, flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        action = actions[task.pop("do")]
        began = time.perf_counter()
        facts = action(**task)
        answer = {"seconds": time.perf_counter() - began, **_without_arrays(facts, scratch), "peak_rss": peak_rss()}
        print(json.dumps(answer), file=answers, flush=True)


def built_once(index: str, made_by: str, run: str, build: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """Have ``build`` write the file ``index`` unless an earlier run did; return what it said, and the file's "bytes".

    ``made_by`` names the code and its settings: the file of another is built anew. ``run`` names this run, of which
    "run" tells whether it built the file. What ``build`` said is kept beside the file, written last: an index without
    it was never finished.
    """
    path = Path(index)
    said = path.with_name(f"{path.name}.json")
    kept: dict[str, Any] = json.loads(said.read_text()) if said.exists() else {}
    if kept.get("made_by") != made_by:
        said.unlink(missing_ok=True)
        kept = {**build(), "made_by": made_by, "run": run, "bytes": path.stat().st_size}
        said.write_text(json.dumps(kept))
    return kept


def slices(count: int, at_once: int) -> list[slice]:
    """Return the slices of ``count`` queries that hand over ``at_once`` a call, 0 for all."""
    size = at_once or count
    return [slice(first, first + size) for first in range(0, count, size)]


def _pin() -> None:
    """Run on as many cores as threads were given; so does each thread that libraries have started and will start."""
    count, threads = int(os.environ.get("OMP_NUM_THREADS", "0")), Path("/proc/self/task")
    if count and threads.exists():
        cores = sorted(os.sched_getaffinity(0))[:count]
        for thread in threads.iterdir():
            os.sched_setaffinity(int(thread.name), cores)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _without_arrays(facts: Mapping[str, Any], scratch: Path) -> dict[str, Any]:
    """Save each numpy array among ``facts``; return the other facts, and the paths under "arrays"."""
    arrays = {name: value for name, value in facts.items() if hasattr(value, "__array__") and hasattr(value, "dtype")}
    paths = {}
    for name, array in arrays.items():
        import numpy as np  # only a contestant that has arrays has numpy

        paths[name] = str(scratch / f"{name}.npy")
        np.save(paths[name], array)
    return {"arrays": paths, **{name: value for name, value in facts.items() if name not in arrays}}


def peak_rss() -> int:
    """Return the largest resident memory in bytes of this process so far."""
    status = Path("/proc/self/status")
    if not status.exists():  # no Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Not ru_maxrss here: Linux hands a parent's peak down to the processes that it starts.
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024
