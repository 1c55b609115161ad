"""Stores that a server can answer from, made in milliseconds, and servers over them. They do not know pytest."""

import io
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from subprocess import Popen
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.job_processes import JobProcesses
from app.jobs import Jobs
from app.server import ServerConfig, create_app
from app.snapshot import Openers
from indexer.dev_record import DevRecord
from indexer.faiss_index import build_index, write_index
from indexer.lexical import write_lexical
from indexer.shards import open_vectors
from retriever.artifacts import SERVED, Artifact
from retriever.data import Corpus, QuerySet
from retriever.ingest import ingest_corpus
from retriever.store import Store
from tests.stand_ins import HashEncoder, OverlapRanker, write_json_lines

TEXTS = {
    "p0": "alpha beta gamma",
    "p1": "alpha beta delta",
    "p2": "alpha epsilon zeta",
    "p3": "eta theta iota",
    "p4": "Alpha  beta gamma",
    "p5": "kappa lambda mu",
    "p6": "alpha beta gamma nu",
    "p7": "xi omicron pi",
}
"""p4 is p0 again but for case and white space."""


FIELDS: Mapping[str, Mapping[str, object]] = {
    "p0": {"year": 1999, "tags": ["old", "greek"]},
    "p1": {"year": 2005.5, "open": True},
    "p2": {"year": 2020, "open": False, "tags": []},
    "p3": {"year": "2020"},
}


def add_corpus(store: Store, folder: Path, texts: Mapping[str, str]) -> Corpus:
    folder.mkdir(parents=True)
    lines = [{"_id": key, "title": "", "text": text, "metadata": FIELDS.get(key)} for key, text in texts.items()]
    write_json_lines(folder / "corpus.jsonl", lines)
    return Corpus(ingest_corpus(store, folder))


def new_store(folder: Path, texts: Mapping[str, str] = TEXTS) -> tuple[Store, Corpus]:
    store = Store(folder / "store", create=True)
    return store, add_corpus(store, folder / "data", texts)


def publish_generation(
    store: Store, corpus: Corpus, seed: int = 0, *, serve: bool = True, lexical: bool = True
) -> Artifact:
    """Publish a generation that HashEncoder(seed=``seed``) made, and let SERVED name it."""
    encoder = HashEncoder(seed=seed)
    with store.generations.stage({"checkpoint": seed, "corpus": corpus.number}) as draft:
        (draft.path / "vectors").mkdir()
        np.save(draft.path / "vectors" / "00000.npy", encoder.encode_passages(corpus.texts(range(len(corpus)))))
        write_index(build_index("Flat", open_vectors(draft.path / "vectors"), seed=1), draft.path / "index.faiss")
        if lexical:
            write_lexical(corpus, draft.path / "lexical", None)
        draft.facts.update(encoder.fingerprints.as_facts(), seed=seed, step=10 * seed, factory="Flat", search={})
        draft.facts.update(rows=len(corpus), dim=encoder.dimensions, dev={"nDCG@10": 0.5})
    if serve:
        store.generations.point(SERVED, draft.number)
    return store.generations.at(draft.number)


def publish_measured(store: Store, corpus: Corpus, figures: list[float], seed: int) -> Artifact:
    """Publish a generation that answers three dev queries as well as ``figures`` say."""
    made = publish_generation(store, corpus, seed=seed, serve=False)
    queries = QuerySet("dev", ["a", "b", "c"], ["one", "two", "three"], [{0: 1}, {1: 1}, {2: 1}])
    with store.generations.stage(made.parents) as draft:
        for name in ("vectors", "index.faiss"):
            (made.path / name).rename(draft.path / name)
        DevRecord.of(queries, corpus, np.array(figures, np.float32)).write(draft.path)
        mean = float(np.mean(figures))
        draft.facts.update(made.facts, dev={"nDCG@10": mean}, dev_sha256="d", corpus_sha256=corpus.sha256)
    store.generations.remove(made.number)
    return store.generations.at(draft.number)


def open_encoder(generation: Artifact) -> HashEncoder:
    return HashEncoder(seed=generation.facts["seed"])


OPENERS = Openers(open_encoder)
RANKER = OverlapRanker()
WITH_RANKER = Openers(open_encoder, lambda generation: RANKER)


def damage(path: Path) -> None:
    """Alter the last byte of a file."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def wait_for(true: Callable[[], bool], seconds: float = 30, every: float = 0.005) -> None:
    """Wait until ``true()`` holds, at most ``seconds``; look again ``every`` so many."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(every)


class Server:
    """A started server over ``store``, driven in-process."""

    def __init__(self, store: Store, app: FastAPI, client: TestClient, log: io.StringIO) -> None:
        self.store, self.app, self.client, self._log = store, app, client, log

    def post(self, path: str, body: object, status: int = 200) -> dict[str, Any]:
        response = self.client.post(path, json=body)
        assert response.status_code == status, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def get(self, path: str, status: int = 200) -> dict[str, Any]:
        response = self.client.get(path)
        assert response.status_code == status, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def metric(self, name: str, **labels: str) -> float:
        value: float | None = self.app.state.service.telemetry.registry.get_sample_value(name, labels)
        assert value is not None, f"no metric {name} {labels}"
        return value

    def wait_for(self, generation: int) -> None:
        """Wait until ``generation`` is served."""
        wait_for(lambda: self.app.state.service.serving.number == generation)

    def log_lines(self, event: str | None = None) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self._log.getvalue().splitlines()]
        return [line for line in lines if event in (None, line["event"])]


def children(processes: JobProcesses) -> list[Popen[bytes]]:
    """Return the processes of jobs that were started here and have not been reaped."""
    return [child for child, _ in list(processes._children.values())]


def end_children(processes: JobProcesses) -> None:
    """Kill the processes of jobs that still run."""
    for child in children(processes):
        child.kill()
        child.wait()


@contextmanager
def serving(
    store: Store, config: ServerConfig | None = None, openers: Openers = OPENERS, database: str | None = None
) -> Iterator[Server]:
    """Start a server over ``store``; it serves at once what SERVED names, if anything."""
    log, jobs = io.StringIO(), Jobs(database or f"sqlite:///{store.root / 'hone.db'}")
    config = replace(config or ServerConfig(), poll_seconds=0.01, log_stream=log)
    app = create_app(config, store, openers, jobs)
    try:
        with TestClient(app) as client:
            server = Server(store, app, client, log)
            served = store.generations.pointed(SERVED)
            if served is not None:
                server.wait_for(served)
            yield server
    finally:
        jobs.close()


@contextmanager
def listening(store: Store, config: ServerConfig | None = None, openers: Openers = OPENERS) -> Iterator[int]:
    """Serve ``store`` with uvicorn on a free port of this machine, and give the port."""
    jobs = Jobs(f"sqlite:///{store.root / 'hone.db'}")
    config = replace(config or ServerConfig(), poll_seconds=0.01, log_stream=io.StringIO())
    app = create_app(config, store, openers, jobs)
    server = uvicorn.Server(uvicorn.Config(app, port=0, ws="none", log_config=None, access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        jobs.close()
