from typing import Any

import pytest

from app.schemas import MineReply
from tests.app.served import Server

QUERY = {"id": "q", "text": "alpha beta gamma", "positives": ["p0"]}


def mined(server: Server, **fields: object) -> list[dict[str, Any]]:
    body = {"queries": [QUERY], "num_negatives": 8, "sampler": {"name": "top"}, **fields}
    negatives: list[dict[str, Any]] = server.post("/v1/mine", body)["results"][0]["negatives"]
    return negatives


def test_positives_and_copies_of_them_never_come_back(server: Server) -> None:
    negatives = mined(server)
    assert {negative["id"] for negative in negatives} == {"p1", "p2", "p3", "p5", "p6", "p7"}
    assert negatives[0]["id"] == "p6" and negatives[0]["rank"] == 3
    assert {(negative["source"], negative["verdict"]) for negative in negatives} == {("ann", "eligible")}
    scores = [negative["score"] for negative in negatives]
    assert scores == sorted(scores, reverse=True)


def test_a_copy_of_the_query_never_comes_back(server: Server) -> None:
    found = mined(server, queries=[{"id": "q", "text": "ALPHA beta gamma", "positives": ["p1"]}])
    assert {negative["id"] for negative in found} == {"p2", "p3", "p5", "p6", "p7"}


def test_limits_are_the_miner_s(server: Server) -> None:
    everything = mined(server)
    margin = mined(server, relative_margin=0.3)
    assert margin == [negative for negative in everything if negative["score"] <= 0.7 + 1e-6]
    assert margin != everything
    assert mined(server, max_score=0.0) == [negative for negative in everything if negative["score"] <= 0]
    assert mined(server, range_min=4, range_max=6) == [n for n in everything if 4 <= n["rank"] - 1 < 6]
    assert mined(server, depth=3, num_negatives=3) == everything[:1]


def test_the_same_generation_and_seed_give_the_same_draw(server: Server) -> None:
    body = {"queries": [QUERY, {**QUERY, "id": "r"}], "num_negatives": 3, "sampler": {"name": "uniform"}}
    first = server.post("/v1/mine", body)
    MineReply.model_validate(first)
    assert first == server.post("/v1/mine", body)
    alone = server.post("/v1/mine", {**body, "queries": [{**QUERY, "id": "r"}]})
    assert alone["results"] == first["results"][1:]
    others = [server.post("/v1/mine", {**body, "seed": seed})["results"] for seed in range(5)]
    assert any(other != first["results"] for other in others)


def test_unknown_positives_are_named(server: Server) -> None:
    queries = [QUERY, {"id": "r", "text": "beta", "positives": ["gone", "p1", "lost"]}]
    error = server.post("/v1/mine", {"queries": queries}, 422)["error"]
    assert "2 ids are not in the corpus of generation 0: 'gone', 'lost'" in error


def test_a_query_without_positives_is_mined(server: Server) -> None:
    found = mined(server, queries=[{"id": "q", "text": "eta theta", "positives": []}], relative_margin=0.5)
    assert len(found) == 8


@pytest.mark.parametrize(
    ("fields", "status", "named"),
    [
        ({"num_negatives": 5, "depth": 4}, 422, "depth = 4"),
        ({"sampler": {"name": "best"}}, 422, "choose one of top, uniform"),
        ({"range_min": 5, "range_max": 5}, 422, "range_max"),
        ({"depth": 1001}, 422, "body.depth"),
        ({"queries": [QUERY] * 300, "depth": 1000}, 413, "200000"),
        ({"queries": []}, 422, "body.queries"),
        ({"queries": [{"id": "q", "text": "a"}]}, 422, "positives"),
        ({"relative_margin": "wide"}, 422, "body.relative_margin"),
    ],
)
def test_invalid_requests_are_refused_by_name(
    server: Server, fields: dict[str, object], status: int, named: str
) -> None:
    assert named in server.post("/v1/mine", {"queries": [QUERY], **fields}, status)["error"]


def test_negatives_are_counted(server: Server) -> None:
    mined(server, num_negatives=2)
    assert server.metric("hone_mined_negatives_total") == 2
