"""Puts the server over a store on a port: one process or several, ended without losing a request.

Does not know routes or snapshots.
"""

import gc
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Event, Thread, Timer
from types import FrameType

import uvicorn
from fastapi import FastAPI

from app.admission import AdmissionConfig
from app.draining import start_draining
from app.foreign_pages import is_loopback
from app.job_processes import job_command
from app.jobs import Jobs
from app.keys import Keys
from app.opening import openers
from app.priority import Priority
from app.server import ServerConfig, create_app
from app.settings import database_url
from app.telemetry import MULTIPROCESS, json_log, log_libraries, worker_is_gone
from retriever.artifacts import SERVED
from retriever.checkpoint import model_folder
from retriever.encoder import saved_settings
from retriever.errors import InputError, StoreError
from retriever.store import Store

FINISH_SECONDS = 30
"""How long requests in flight may take to end once no new one is let in."""
WATCH_SECONDS = 0.5
RESTART_SECONDS = 1.0


@dataclass(frozen=True)
class ServeOptions:
    """How a store is served.

    ``insecure`` asks for no keys wherever it listens and by whatever name it is asked, ``require_keys`` also on
    loopback. For ``drain_seconds`` after SIGTERM the server still answers though it is not ready any more, so that
    others send it nothing new. ``ranker`` is the folder of a ranker for generations that hold none. ``admission`` are
    the limits of each process, ``job_priority`` is that of long jobs.
    """

    insecure: bool = False
    require_keys: bool = False
    workers: int = 1
    drain_seconds: float = 5.0
    ranker: Path | None = None
    admission: AdmissionConfig = field(default_factory=AdmissionConfig)
    job_priority: Priority = Priority.IDLE


def serve_store(
    root: Path,
    host: str,
    port: int,
    options: ServeOptions | None = None,
    listening: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve the store at ``root`` until a signal; requests in flight are finished first.

    ``listening`` is told the address, whose port the system chooses where ``port`` is 0. Raises InputError for a folder
    that is no store, for limits that the served model cannot live with, for an address that others can reach where
    there are no keys to ask for, and for one that cannot be listened on.
    """
    options = options or ServeOptions()
    _check_limits(Store(root), options.admission)
    with closing(_listen(host, port)) as listener:
        _check_keys(root, host, options)
        listening(address(host, listener.getsockname()[1]))
        if options.workers == 1:
            _run(root, host, options, listener)
        else:
            _run_workers(root, host, options, listener)


def address(host: str, port: int) -> str:
    """Return the URL of a server; in one, a host of IPv6 stands in brackets."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _check_limits(store: Store, limits: AdmissionConfig) -> None:
    """Raise InputError where the model that is served now reads longer texts than may wait; later ones are refused."""
    try:
        generation = store.generations.get(SERVED)
        model = None if generation is None else saved_settings(model_folder(generation))
    except StoreError:
        return  # what is damaged is reported by what loads it, which may find one before it that is not
    if model is not None:
        limits.check_longest(max(model.query_max_length or 0, model.passage_max_length or 0))


def _listen(host: str, port: int) -> socket.socket:
    with ExitStack() as undo:
        try:
            family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            listener = undo.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place)
        except OSError as error:
            raise InputError(
                f"cannot listen on {host}:{port} ({error.strerror}); choose another --host or --port"
            ) from error
        undo.pop_all()
    return listener


def _asks_for_keys(host: str, options: ServeOptions) -> bool:
    return options.require_keys or not (options.insecure or is_loopback(host))


def _check_keys(root: Path, host: str, options: ServeOptions) -> None:
    """Raise InputError where keys are asked for and there is none."""
    if not _asks_for_keys(host, options):
        return
    with closing(Keys(database_url(root))) as keys:
        if not keys.any_valid():
            raise InputError(
                f"host {host!r} can be reached from other machines and there is no key to ask for; make one with `hone "
                "keys create`, use 127.0.0.1, or say --insecure if something in front of it asks for keys"
            )


class DrainingServer(uvicorn.Server):
    """A uvicorn server that, told to end by SIGTERM, is not ready for a while before it lets nothing in any more."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, drain_seconds: float) -> None:
        """``app`` is told that it drains."""
        super().__init__(config)
        self._served = app
        self._drain_seconds = drain_seconds
        self._draining = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; a second signal, or Ctrl-C, ends the wait."""
        start_draining(self._served)
        if sig != signal.SIGTERM or self._draining or not self._drain_seconds:
            super().handle_exit(sig, frame)
            return
        self._draining = True
        timer = Timer(self._drain_seconds, self._stop)
        timer.daemon = True
        timer.start()

    def _stop(self) -> None:
        self.should_exit = True


def _run(
    root: Path,
    host: str,
    options: ServeOptions,
    listener: socket.socket,
    job_environment: Mapping[str, str] | None = None,
) -> None:
    """Serve in this process."""
    log_libraries(sys.stderr)
    jobs = Jobs(database_url(root))
    keys = Keys(database_url(root)) if _asks_for_keys(host, options) else None
    try:
        gc.collect()
        gc.freeze()  # what was imported stays: without this, looking through it for garbage holds up all requests
        command, several = job_command(root, options.job_priority), options.workers > 1
        config = ServerConfig(
            admission=options.admission,
            job_command=command,
            job_environment=job_environment,
            keys=keys,
            load_first=several,
            proxied=options.insecure,
        )
        app = create_app(config, Store(root), openers(options.ranker), jobs)
        settings = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=FINISH_SECONDS)
        DrainingServer(settings, app, options.drain_seconds).run(sockets=[listener])
    finally:
        jobs.close()
        if keys is not None:
            keys.close()


def _run_as_worker(
    root: Path, host: str, options: ServeOptions, listener: socket.socket, job_environment: Mapping[str, str]
) -> None:
    """Serve in a process of several, which ends if its parent is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    Thread(target=watch, name="parent-watch", daemon=True).start()
    _run(root, host, options, listener, job_environment)


def cpus() -> int:
    """Return how many cores this process may use, not counting those of the machine that a container was not given."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_each(environment: Mapping[str, str], workers: int) -> int:
    """Return with how many threads each of ``workers`` computes: its part of OMP_NUM_THREADS, else of the cores.

    Raises InputError where OMP_NUM_THREADS is not a number; of a list, which is for nested loops, the first counts.
    """
    given = environment.get("OMP_NUM_THREADS") or str(cpus())
    first = given.partition(",")[0].strip()
    if not first.isdecimal() or int(first) < 1:
        raise InputError(f"OMP_NUM_THREADS = {given!r}: write how many threads all workers have together, or unset it")
    return max(1, int(first) // workers)


def _run_workers(root: Path, host: str, options: ServeOptions, listener: socket.socket) -> None:
    """Serve in several processes behind one socket; one that dies is started again.

    They share the cores: each computes with its part of them. They share the index: each maps the same file. A job has
    the environment that this process was started with: all cores, of which it takes what its priority leaves it, and
    none of the workers' metrics.
    """
    own = dict(os.environ)
    threads = str(threads_each(own, options.workers))
    Jobs(database_url(root)).close()  # what is wrong with it is said once, not by each worker
    log, stop = json_log(sys.stderr), Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    spawn = multiprocessing.get_context("spawn")

    def start() -> BaseProcess:
        worker = spawn.Process(target=_run_as_worker, args=(root, host, options, listener, own))
        worker.start()
        return worker

    with tempfile.TemporaryDirectory(prefix="hone-metrics-") as metrics:
        os.environ.update({MULTIPROCESS: metrics, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads})
        workers = [start() for _ in range(options.workers)]
        while not stop.wait(WATCH_SECONDS):
            for place, worker in enumerate(workers):
                if not worker.is_alive():
                    log.error("worker_died", pid=worker.pid, exit_code=worker.exitcode)
                    worker_is_gone(worker.pid or 0)
                    stop.wait(RESTART_SECONDS)
                    workers[place] = start()
        for worker in workers:
            worker.terminate()
        listener.close()  # theirs close as each ends; who comes then is refused at once, not left waiting for this one
        for worker in workers:
            worker.join()
