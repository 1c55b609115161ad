from typing import Any

import numpy as np
import pytest

from app.schemas import SearchReply
from tests.app.served import TEXTS, Server
from tests.stand_ins import HashEncoder


def ids(answer: dict[str, Any]) -> list[list[str]]:
    return [[hit["id"] for hit in hits] for hits in answer["results"]]


def test_hits_are_those_of_brute_force(server: Server) -> None:
    queries = ["alpha epsilon", "eta theta"]
    encoder = HashEncoder(seed=0)
    scores = encoder.encode_queries(queries) @ encoder.encode_passages(list(TEXTS.values())).T
    answer = server.post("/v1/search", {"queries": queries, "top_k": 3})
    SearchReply.model_validate(answer)
    assert (answer["generation"], answer["space"]) == (0, "hash-32-0")
    for hits, expected in zip(answer["results"], scores, strict=True):
        best = np.sort(expected)[::-1][:3]
        assert [hit["score"] for hit in hits] == pytest.approx(best.tolist(), abs=1e-6)
        assert [expected[int(hit["id"][1:])] for hit in hits] == pytest.approx(best.tolist(), abs=1e-6)
        assert [hit["rank"] for hit in hits] == [1, 2, 3]
        assert all("text" not in hit for hit in hits)


def test_exact_search_agrees_with_the_index(server: Server) -> None:
    body = {"queries": "eta theta", "top_k": 1, "with_text": True}
    exact, indexed = server.post("/v1/search", {**body, "exact": True}), server.post("/v1/search", body)
    assert ids(exact) == ids(indexed) == [["p3"]]
    assert exact["results"][0][0]["text"] == "eta theta iota"


@pytest.mark.parametrize("exact", [False, True])
def test_excluded_passages_never_come_and_unknown_ids_change_nothing(server: Server, exact: bool) -> None:
    body = {"queries": ["alpha beta gamma"] * 2, "top_k": 8, "exact": exact, "exclude_ids": ["p0", "p6", "no such id"]}
    for found in ids(server.post("/v1/search", body)):
        assert sorted(found) == ["p1", "p2", "p3", "p4", "p5", "p7"]
        assert found[0] == "p4"


def test_everything_excluded_gives_no_hits(server: Server) -> None:
    for exact in (False, True):
        assert ids(server.post("/v1/search", {"queries": "x", "exclude_ids": list(TEXTS), "exact": exact})) == [[]]


def test_top_k_beyond_the_corpus_gives_the_whole_corpus(server: Server) -> None:
    assert sorted(ids(server.post("/v1/search", {"queries": "alpha", "top_k": 1000}))[0]) == sorted(TEXTS)


def test_vectors_of_a_client_search_like_their_texts(server: Server) -> None:
    encoded = server.post("/v1/encode", {"inputs": ["eta theta", "kappa"]})
    by_vector = server.post("/v1/search", {"vectors": encoded["embeddings"], "space": encoded["space"]})
    assert by_vector == server.post("/v1/search", {"queries": ["eta theta", "kappa"]})


def test_vectors_of_another_space_are_a_conflict(server: Server) -> None:
    response = server.client.post("/v1/search", json={"vectors": [[0.0] * 32], "space": "another"})
    assert (response.status_code, response.json()["error_type"]) == (409, "conflict")
    assert "another" in response.json()["error"] and "hash-32-0" in response.json()["error"]
    assert response.headers["x-hone-generation"] == "0"


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        ({}, 422, "either queries or vectors"),
        ({"queries": "a", "vectors": [[1.0]], "space": "s"}, 422, "either queries or vectors"),
        ({"vectors": [[1.0] * 32]}, 422, "space"),
        ({"vectors": [[1.0] * 31], "space": "hash-32-0"}, 422, "31 numbers where this space has 32"),
        ({"vectors": [[1e300] * 32], "space": "hash-32-0"}, 422, "too large for float32"),
        ({"vectors": [["1"] * 32], "space": "hash-32-0"}, 422, "body.vectors.0.0"),
        ({"queries": "a", "mode": "hybrid"}, 422, "body.mode"),
        ({"queries": "a", "top_k": 0}, 422, "body.top_k"),
        ({"queries": "a", "top_k": 1001}, 422, "body.top_k"),
        ({"queries": "a", "top_k": "3"}, 422, "body.top_k"),
        ({"queries": "a", "top_k": True}, 422, "body.top_k"),
        ({"queries": ["a"] * 2048, "top_k": 1000}, 413, "200000 hits"),
    ],
)
def test_invalid_requests_are_refused_by_name(server: Server, body: object, status: int, named: str) -> None:
    assert named in server.post("/v1/search", body, status)["error"]


def test_not_a_number_is_no_number(server: Server) -> None:
    body = f'{{"vectors": [[{", ".join(["NaN"] * 32)}]], "space": "hash-32-0"}}'
    response = server.client.post("/v1/search", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 422
    assert "finite" in response.json()["error"]
