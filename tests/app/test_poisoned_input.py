"""The promise that an input that the model fails on is named by its place, refused alone, and logged by its request."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from app.routes.mine import CHUNK_QUERIES
from app.snapshot import Openers
from retriever.protocols import FloatArray, Progress, Side, silent
from tests.app.served import Server, new_store, publish_generation, serving
from tests.stand_ins import HashEncoder, OverlapRanker

POISON = "poison"


class Poisoned(HashEncoder):
    """Fails on any batch that holds the one word."""

    def encode_tokens(self, side: Side, token_ids: Sequence[Sequence[int]], progress: Progress = silent) -> FloatArray:
        """Return float32 [n, dimensions]."""
        if any(self._id(POISON) in ids for ids in token_ids):
            raise ArithmeticError("not a number")
        return super().encode_tokens(side, token_ids, progress)


class PoisonedRanker(OverlapRanker):
    """The same of pairs."""

    def score_tokens(self, pairs: Sequence[tuple[list[str], list[str]]]) -> FloatArray:
        """Return float32 [n]."""
        if any(POISON in passage for _, passage in pairs):
            raise ArithmeticError("not a number")
        return super().score_tokens(pairs)


@pytest.fixture
def poisoned(tmp_path: Path) -> Iterator[Server]:
    store, corpus = new_store(tmp_path)
    publish_generation(store, corpus)
    with serving(store, openers=Openers(lambda _: Poisoned(seed=0), lambda _: PoisonedRanker())) as server:
        yield server


TEXTS = ["alpha", "alpha", "beta", POISON, "gamma"]
QUERIES = [{"id": str(place), "text": f"alpha {place}", "positives": []} for place in range(CHUNK_QUERIES + 3)]


@pytest.mark.parametrize(
    ("path", "body", "status", "place"),
    [
        ("/v1/encode", {"inputs": TEXTS}, 500, 3),
        ("/v1/encode", {"inputs": TEXTS, "input_type": "passage"}, 500, 3),
        ("/v1/search", {"queries": TEXTS}, 500, 3),
        ("/v1/embeddings", {"input": TEXTS, "model": "query"}, 500, 3),
        ("/v1/mine", {"queries": [*QUERIES, {**QUERIES[0], "text": POISON}]}, 500, len(QUERIES)),
        ("/v1/rerank", {"query": "alpha", "documents": TEXTS}, 500, 3),
        ("/embed", {"inputs": TEXTS}, 424, 3),
        ("/rerank", {"query": "alpha", "texts": TEXTS}, 424, 3),
    ],
)
def test_the_input_is_named_by_its_place_in_the_request(
    poisoned: Server, path: str, body: dict[str, Any], status: int, place: int
) -> None:
    """Though what was asked before, or twice, is not computed again, and long requests are computed in parts."""
    poisoned.post("/v1/encode", {"inputs": "beta"})
    response = poisoned.client.post(path, json=body)
    assert response.status_code == status, response.text
    assert f"input {place} cannot be computed (ArithmeticError); leave it out" in response.text
    (line,) = poisoned.log_lines("input_failed")
    assert (line["request_id"], line["reason"]) == (response.headers["x-request-id"], "ArithmeticError('not a number')")


def test_the_last_line_of_a_stream_names_it_too(poisoned: Server) -> None:
    body = {"queries": [*QUERIES, {**QUERIES[0], "text": POISON}], "stream": True}
    *mined, last = poisoned.client.post("/v1/mine", json=body).text.splitlines()
    assert len(mined) == CHUNK_QUERIES and f"input {len(QUERIES)} cannot be computed" in last
