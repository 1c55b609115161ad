"""The promise that a swap loses no request and mixes no two generations, over real sockets."""

import http.client
import json
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retriever.artifacts import SERVED
from retriever.store import Store
from tests.app.served import add_corpus, listening, publish_generation, wait_for
from tests.stand_ins import HashEncoder

QUERY = "alpha beta"
ASKED: list[tuple[str, dict[str, object]]] = [
    ("/v1/search", {"queries": [QUERY, QUERY], "top_k": 20}),
    ("/v1/search", {"queries": [QUERY], "top_k": 20, "exact": True}),
    ("/v1/mine", {"queries": [{"id": "q", "text": QUERY, "positives": []}], "num_negatives": 20, "depth": 20}),
    ("/v1/encode", {"inputs": [QUERY]}),
]
SWAPS = 5
CLIENTS = 4


class Client:
    """A raw client: one connection, no retries; any broken connection or status but 200 is an error."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def post(self, path: str, body: object) -> tuple[int, dict[str, Any], int]:
        """Return status, body and the generation that the header names."""
        self._connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        response = self._connection.getresponse()
        answer = json.loads(response.read())
        return response.status, answer, int(response.headers.get("x-hone-generation", -1))

    def close(self) -> None:
        self._connection.close()


def published(store: Store, folder: Path, number: int) -> dict[str, float]:
    """Publish generation ``number`` of its own corpus and encoder, not served yet; return the score of each passage."""
    texts = {f"g{number}-p{i}": f"{QUERY} {'gamma ' * i}g{number}" for i in range(20)}
    publish_generation(store, add_corpus(store, folder / f"data{number}", texts), seed=number, serve=False)
    encoder = HashEncoder(seed=number)
    scores = encoder.encode_passages(list(texts.values())) @ encoder.encode_queries([QUERY])[0]
    return dict(zip(texts, scores.tolist(), strict=True))


def requests_until(stop: threading.Event, port: int, expected: list[dict[str, float]]) -> Counter[int]:
    """Ask everything again and again, and once more after ``stop``; count the answers of each generation."""
    seen: Counter[int] = Counter()
    with closing(Client(port)) as client:
        last = False
        while not last:
            last = stop.is_set()
            for path, body in ASKED:
                seen[checked(client, path, body, expected)] += 1
    return seen


def checked(client: Client, path: str, body: object, expected: list[dict[str, float]]) -> int:
    """Ask, check every score or vector against the generation that the answer names, and return that one."""
    status, answer, named = client.post(path, body)
    assert status == 200, answer
    assert answer["generation"] == named
    if path == "/v1/encode":
        vector = HashEncoder(seed=named).encode_queries([QUERY])[0]
        assert np.array_equal(np.array(answer["embeddings"][0], np.float32), vector)
        assert answer["space"] == f"hash-32-{named}"
        return named
    for result in answer["results"]:
        hits = result["negatives"] if path == "/v1/mine" else result
        assert {hit["id"]: hit["score"] for hit in hits} == pytest.approx(expected[named], abs=1e-5)
    return named


def swap_under_load(folder: Path, swaps: int) -> Counter[int]:
    """Swap ``swaps`` times, forwards through six generations again and again, while clients ask; count the answers."""
    store = Store(folder / "store", create=True)
    expected = [published(store, folder, number) for number in range(SWAPS + 1)]
    store.generations.point(SERVED, 0)
    stop = threading.Event()
    with listening(store) as port, ThreadPoolExecutor(CLIENTS) as pool, closing(Client(port)) as watcher:

        def is_served(number: int) -> bool:
            return watcher.post("/v1/encode", {"inputs": "a"})[2] == number

        wait_for(lambda: is_served(0))
        clients = [pool.submit(requests_until, stop, port, expected) for _ in range(CLIENTS)]
        try:
            for swap in range(1, swaps + 1):
                number = swap % len(expected)
                time.sleep(0.1)
                store.generations.point(SERVED, number)
                wait_for(lambda number=number: is_served(number))  # type: ignore[misc]  # bound to the loop's number
        finally:
            stop.set()  # else the clients would ask for ever
        seen = [client.result() for client in clients]
    assert all(counts[0] > 0 for counts in seen)
    return sum(seen, Counter())


def test_no_request_is_lost_and_each_answer_is_of_one_generation(tmp_path: Path) -> None:
    assert swap_under_load(tmp_path, SWAPS + 1).keys() == set(range(SWAPS + 1))


@pytest.mark.soak
def test_a_hundred_swaps_lose_no_request(tmp_path: Path) -> None:
    answers = swap_under_load(tmp_path, 100)
    print(f"{sum(answers.values())} answers over 100 swaps, none lost, none mixed")
    assert answers.keys() == set(range(SWAPS + 1))
