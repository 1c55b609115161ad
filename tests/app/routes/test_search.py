from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.schemas import SearchReply
from tests.app.served import RANKER, TEXTS, WITH_RANKER, Server, new_store, publish_generation, serving
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


def test_queries_that_are_cut_are_counted(server: Server) -> None:
    answer = server.post("/v1/search", {"queries": ["alpha", "eta " * 600]})
    assert answer["cut_queries"] == 1
    assert server.post("/v1/search", {"queries": ["eta " * 600], "mode": "lexical"})["cut_queries"] == 0, "words alone"
    vectors = HashEncoder(seed=0).encode_queries(["eta"]).tolist()
    assert server.post("/v1/search", {"vectors": vectors, "space": answer["space"]})["cut_queries"] == 0


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
        ({"queries": "a", "mode": "sparse"}, 422, "body.mode"),
        ({"vectors": [[1.0] * 32], "space": "hash-32-0", "mode": "hybrid"}, 422, "give queries, not vectors"),
        ({"vectors": [[1.0] * 32], "space": "hash-32-0", "rerank": True}, 422, "give queries, not vectors"),
        ({"queries": ["a"] * 201, "rerank": True}, 413, "10000"),
        (
            {"queries": "a", "filter": {"yaer": 1}},
            422,
            "filter.yaer: no passage has this field; there are: open, tags",
        ),
        ({"queries": "a", "filter": {"year": {}}}, 422, "at least one of gt"),
        ({"queries": "a", "filter": {"year": {"above": 3}}}, 422, "above"),
        ({"queries": "a", "filter": {"year": {"gte": 3, "lt": "b"}}}, 422, "no value can meet a number and a string"),
        ({"queries": "a", "filter": {"year": []}}, 422, "body.filter.year"),
        ({"queries": "a", "filter": "new"}, 422, "body.filter: Input should be a valid dictionary"),
        ({"queries": "a", "dense_weight": 1.5}, 422, "body.dense_weight"),
        ({"queries": "a", "top_k": 0}, 422, "body.top_k"),
        ({"queries": "a", "top_k": 1001}, 422, "body.top_k"),
        ({"queries": "a", "top_k": "3"}, 422, "body.top_k"),
        ({"queries": "a", "top_k": True}, 422, "body.top_k"),
        ({"queries": ["a"] * 2048, "top_k": 1000}, 413, "200000"),
    ],
)
def test_invalid_requests_are_refused_by_name(server: Server, body: object, status: int, named: str) -> None:
    assert named in server.post("/v1/search", body, status)["error"]


@pytest.mark.parametrize(
    ("condition", "status", "said"),
    [
        ([2020, {"gte": 3}], 422, "values.1: give a string, a finite number, true, false or null"),
        ([[2020]], 422, "values.0: give a string, a finite number, true, false or null"),
        ({"gte": True}, 422, "bounds.gte: give a string or a finite number"),
        ({"gte": [2020]}, 422, "bounds.gte: give a string or a finite number"),
        ("a" * 65_537, 413, "value: give at most 65536 characters"),
    ],
)
def test_a_wrong_type_in_a_filter_is_one_problem(server: Server, condition: object, status: int, said: str) -> None:
    answer = server.post("/v1/search", {"queries": "a", "filter": {"year": condition}}, status)
    assert answer["error"] == f"body.filter.year.{said}" and len(answer["detail"]) == 1


def test_not_a_number_is_no_number(server: Server) -> None:
    body = f'{{"vectors": [[{", ".join(["NaN"] * 32)}]], "space": "hash-32-0"}}'
    response = server.client.post("/v1/search", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 422
    assert "finite" in response.json()["error"]


def test_words_are_searched(server: Server) -> None:
    answer = server.post("/v1/search", {"queries": ["alpha epsilon", "theta", "nothing"], "mode": "lexical"})
    SearchReply.model_validate(answer)
    first, second, third = ids(answer)
    assert first[0] == "p2" and {*first} == {"p0", "p1", "p2", "p4", "p6"}
    assert (second, third) == (["p3"], [])


@pytest.mark.parametrize("fusion", ["rrf", "weights"])
@pytest.mark.parametrize("exact", [False, True])
def test_hybrid_adds_both_up(server: Server, fusion: str, exact: bool) -> None:
    body = {"queries": ["alpha epsilon"], "mode": "hybrid", "fusion": fusion, "top_k": 8, "exact": exact}
    dense = server.post("/v1/search", {**body, "mode": "dense"})["results"][0]
    lexical = server.post("/v1/search", {**body, "mode": "lexical"})["results"][0]
    for weight in (0.0, 0.3, 1.0):
        fused = server.post("/v1/search", {**body, "dense_weight": weight})["results"][0]
        if fusion == "rrf":
            of = [{hit["id"]: 1 / (60 + hit["rank"]) for hit in hits} for hits in (dense, lexical)]
        else:
            of = [{hit["id"]: hit["score"] for hit in hits} for hits in (dense, lexical)]
            of[1] = {key: of[1].get(key, 0.0) for key in of[0]}
            spans = [(min(one.values()), max(one.values())) for one in of]
            of = [
                {k: (v - low) / (high - low) for k, v in one.items()}
                for one, (low, high) in zip(of, spans, strict=True)
            ]
        expected = {key: weight * of[0][key] + (1 - weight) * of[1].get(key, 0.0) for key in of[0]}
        assert {hit["id"]: hit["score"] for hit in fused} == pytest.approx(expected, abs=1e-5)
        assert [hit["score"] for hit in fused] == sorted((hit["score"] for hit in fused), reverse=True)


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
def test_filters_and_exclusions_hold_in_every_mode(server: Server, mode: str) -> None:
    body = {"queries": "alpha beta gamma", "mode": mode, "top_k": 8}

    def found(**fields: object) -> list[str]:
        return sorted(ids(server.post("/v1/search", {**body, **fields}))[0])

    assert found(filter={"year": {"gte": 1999, "lt": 2020}}) == ["p0", "p1"]
    assert found(filter={"year": [2020, "2020"], "open": False}) == ["p2"]
    assert found(filter={"tags": "greek"}) == ["p0"]
    assert found(filter={"tags": "greek"}, exclude_ids=["p0"]) == []
    assert "p4" in found(filter={"year": None}) and "p0" not in found(filter={"year": None})


def test_a_broad_filter_asks_the_index(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"queries": "alpha beta gamma", "top_k": 3, "filter": {"year": None}}
    exact = server.post("/v1/search", body)
    monkeypatch.setattr("app.searching.EXACT_ROWS", 0)
    monkeypatch.setattr("app.searching.exact_search", None)
    asked = server.post("/v1/search", body)
    assert ids(asked) == ids(exact) and len(ids(exact)[0]) == 3
    scores, others = ([hit["score"] for hit in answer["results"][0]] for answer in (asked, exact))
    assert scores == pytest.approx(others, abs=1e-6)  # faiss and numpy add in another order


def test_a_generation_without_words_says_so(tmp_path: Path) -> None:
    store, corpus = new_store(tmp_path)
    publish_generation(store, corpus, lexical=False)
    with serving(store) as server:
        for mode in ("lexical", "hybrid"):
            assert "lexical = true" in server.post("/v1/search", {"queries": "alpha", "mode": mode}, 409)["error"]
        server.post("/v1/search", {"queries": "alpha"})


def test_the_ranker_orders_the_best(tmp_path: Path, server: Server) -> None:
    queries = ["alpha beta", "eta"]
    body = {"queries": queries, "top_k": 2, "rerank": True, "rerank_depth": 5, "with_text": True}
    assert "--ranker" in server.post("/v1/search", body, 409)["error"]
    store, corpus = new_store(tmp_path / "other")
    publish_generation(store, corpus)
    with serving(store, openers=WITH_RANKER) as ranked:
        for asked in (body, {**body, "mode": "lexical"}):
            first, second = ranked.post("/v1/search", asked)["results"]
            for query, hits in zip(queries, (first, second), strict=True):
                scores = RANKER.score([query] * len(hits), [hit["text"] for hit in hits])
                assert [hit["score"] for hit in hits] == pytest.approx(scores.tolist())
                assert scores.tolist() == sorted(scores.tolist(), reverse=True)
            assert {hit["id"] for hit in first} <= {"p0", "p1", "p4", "p6"} and second[0]["id"] == "p3"
        assert ranked.post("/v1/search", {**body, "queries": "omega", "mode": "lexical"})["results"] == [[]]
        assert ranked.post("/v1/search", body)["cut_pairs"] == 0
        long = ranked.post("/v1/search", {**body, "queries": ["alpha " * 511, "eta"]})
        assert long["cut_pairs"] == 5, "of each of the five pairs of the long one a word is left out"
