"""The promise that a generation's own ranker answers without a flag and stays loaded over a swap, on real sockets."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import numpy as np
import pytest

from app.client import ApiError, Client
from app.indexing import rebuild
from app.opening import openers
from app.rankers import named_ranker, saved_ranker
from app.snapshot import Openers
from retriever.artifacts import SERVED, Artifact
from retriever.protocols import TokenRanker
from retriever.store import Store
from tests.app.command_line import silent
from tests.app.served import listening, wait_for
from tests.tiny_ranker import write_tiny_ranker

QUERY = "baka beki"
TEXTS = ["beki", "dula duku", "baka bola", "bola"]
CLIENTS = 3
CLOSE = 5e-3
"""Of probabilities that were computed in other company: some bits of bf16, where the hardware has it."""


class Watched:
    """Openers that remember the ranker of each generation that was opened."""

    def __init__(self) -> None:
        self._openers = openers()
        self.rankers: list[TokenRanker | None] = []

    def ranker(self, generation: Artifact) -> TokenRanker | None:
        self.rankers.append(self._openers.ranker(generation))
        return self.rankers[-1]

    @property
    def openers(self) -> Openers:
        return Openers(self._openers.encoder, self.ranker)


def scores(client: Client) -> list[float]:
    """Ask the reranking route and a reranked search, and return the scores of both, hits in the order of their ids."""
    ranked = sorted(client.rerank(QUERY, TEXTS).results, key=lambda one: one.index)
    (hits,) = client.search(QUERY, top_k=60, rerank=True, rerank_depth=60).results
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    return [one.relevance_score for one in ranked] + [hit.score for hit in sorted(hits, key=lambda hit: hit.id)]


def test_a_ranker_answers_from_its_generation_and_over_swaps(indexed: Path, tmp_path: Path) -> None:
    store, folder = Store(indexed), write_tiny_ranker(tmp_path / "ranker")
    with saved_ranker(str(folder)) as files:
        # Its weights are random: the gate is not to ask what they make of the hits.
        first = rebuild(store, {"precision": "fp32", "rerank_depth": 0}, silent, ranker=files)
    rebuilt = [rebuild(store, {}, silent) for _ in range(2)]
    store.generations.point(SERVED, first.number)
    watched, stop = Watched(), threading.Event()
    with listening(store, openers=watched.openers) as port:
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: httpx2.get(f"{url}/readyz").status_code == 200)

        def ask() -> list[list[float]]:
            seen = []
            with Client(url, retries=0) as client:
                while not stop.is_set():
                    seen.append(scores(client))
            return seen

        with ThreadPoolExecutor(CLIENTS) as pool, Client(url) as client:
            clients = [pool.submit(ask) for _ in range(CLIENTS)]
            try:
                for one in (*rebuilt, first, rebuilt[-1]):
                    store.generations.point(SERVED, one.number)
                    wait_for(lambda number=one.number: client.ready().generation == number)  # type: ignore[misc]  # bound to the loop's
            finally:
                stop.set()
            seen = [one for done in clients for one in done.result()]
            assert len(watched.rankers) >= 5 and len({id(one) for one in watched.rankers}) == 1, "loaded once"
            ranker = named_ranker(str(folder))
            expected = ranker.score([QUERY] * len(TEXTS), TEXTS)
            assert ranker.probable
            for answer in seen:
                np.testing.assert_allclose(answer[: len(TEXTS)], expected, atol=CLOSE)
                np.testing.assert_allclose(answer, seen[0], atol=CLOSE)
            store.generations.point(SERVED, 0)
            wait_for(lambda: client.ready().generation == 0)
            with pytest.raises(ApiError, match="hone index --ranker FOLDER") as refused:
                client.rerank(QUERY, TEXTS)
            assert refused.value.status == 409
