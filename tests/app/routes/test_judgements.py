from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from app.judgement_schemas import JudgementsReply, JudgeReply
from app.keys import Keys
from app.server import ServerConfig
from tests.app.served import TEXTS, Server, add_corpus, new_store, publish_generation, serving

QUERY = {"id": "q", "text": "alpha beta gamma"}
SIMILAR = {"id": "q", "text": "alpha beta"}
"""No passage is a copy of it."""
ROUTE = "/v1/judgements"


def judgement(passage: str = "p6", relevant: object = True, **fields: object) -> dict[str, Any]:
    return {"query": QUERY, "passage": passage, "relevant": relevant, **fields}


def judged(server: Server, *judgements: dict[str, Any], status: int = 200) -> dict[str, Any]:
    return server.post(ROUTE, {"judgements": list(judgements)}, status)


def mined(server: Server, query: dict[str, Any] = QUERY, **fields: object) -> dict[str, str]:
    """Return the verdicts of a query's negatives by their ids."""
    body = {"queries": [{"positives": [], **query}], "num_negatives": 8, "sampler": {"name": "top"}, **fields}
    (found,) = server.post("/v1/mine", body)["results"]
    return {one["id"]: one["verdict"] for one in found["negatives"]}


def test_one_or_many_are_stored_once_and_listed(server: Server) -> None:
    assert server.post(ROUTE, {"judgements": judgement()}) == {"generation": 0, "stored": 1, "unchanged": 0}
    again = judged(server, judgement(), judgement("p1", 3, by="bob", note="nearly"))
    assert again == {"generation": 0, "stored": 1, "unchanged": 1}
    JudgeReply.model_validate(again)
    assert judged(server, judgement(relevant=False))["stored"] == 1
    listed = server.get(ROUTE)
    JudgementsReply.model_validate(listed)
    shown = [(one["passage"], one["grade"], one["by"], one["note"]) for one in listed["judgements"]]
    assert shown == [("p6", 0, "anonymous", None), ("p1", 3, "bob", "nearly"), ("p6", 1, "anonymous", None)]
    assert listed["judgements"][0]["query"] == QUERY and listed["next"] is None


def test_a_list_is_read_page_by_page(server: Server) -> None:
    judged(server, *(judgement(f"p{n}") for n in (0, 1, 2, 3, 5)))
    pages, before = [], ""
    while before is not None:
        page = server.get(f"{ROUTE}?limit=2{before}")
        pages.append([one["passage"] for one in page["judgements"]])
        before = page["next"] and f"&before={page['next']}"
    assert pages == [["p5", "p3"], ["p2", "p1"], ["p0"]]
    assert "limit" in server.get(f"{ROUTE}?limit=0", 422)["error"]


def test_what_is_unknown_or_contradicts_itself_is_named_and_nothing_is_stored(server: Server) -> None:
    refused = judged(server, judgement(), judgement("gone"), judgement("lost"), status=422)
    assert refused["error"].startswith("body.judgements.1.passage: 'gone' is not in the corpus of generation 0")
    assert [one["field"] for one in refused["detail"]] == ["body.judgements.1.passage", "body.judgements.2.passage"]
    refused = judged(server, judgement(), judgement("p1"), judgement(relevant=False), status=422)
    assert refused["detail"] == [
        {"field": "body.judgements.2.relevant", "message": "judgements.0 says 1 of the same pair; send one of them"}
    ]
    copies = judged(server, judgement("p0"), judgement("p4", False), status=422)
    assert copies["detail"][0]["field"] == "body.judgements.1.relevant", "p4 is p0 again"
    assert server.get(ROUTE)["judgements"] == []
    judged(server, judgement(by="ann"), judgement(relevant=False, by="bob"))


@pytest.mark.parametrize(
    ("fields", "status", "named"),
    [
        ({"query": {}}, 422, "body.judgements.0.query"),
        ({"query": {"text": ""}}, 422, "body.judgements.0.query.text"),
        ({"query": {"text": "a" * 65_537}}, 413, "body.judgements.0.query.text"),
        ({"query": {"id": "a\x00"}}, 422, "body.judgements.0.query.id"),
        ({"relevant": "yes"}, 422, "body.judgements.0.relevant"),
        ({"relevant": -1}, 422, "body.judgements.0.relevant"),
        ({"relevant": 101}, 422, "body.judgements.0.relevant"),
        ({"by": ""}, 422, "body.judgements.0.by"),
        ({"note": "a" * 4097}, 413, "body.judgements.0.note"),
        ({"verdict": 1}, 422, "body.judgements.0.verdict"),
    ],
)
def test_invalid_judgements_are_refused_by_name(
    server: Server, fields: dict[str, object], status: int, named: str
) -> None:
    assert judged(server, {**judgement(), **fields}, status=status)["error"].startswith(named)


def test_there_are_limits(server: Server) -> None:
    assert "2048" in judged(server, *[judgement()] * 2049, status=413)["error"]
    judged(server, status=422)


def test_what_was_judged_relevant_never_comes_back_as_a_negative(server: Server) -> None:
    everything = mined(server)
    assert everything["p6"] == "eligible"
    judged(server, judgement("p6"), judgement("p1"))
    assert mined(server) == {name: verdict for name, verdict in everything.items() if name not in ("p1", "p6")}
    assert server.metric("hone_filtered_negatives_total", reason="judged_relevant") == 2
    assert mined(server, {"id": "r", "text": "ALPHA beta  gamma"}).keys() == mined(server).keys(), "the same text"
    assert "p6" in mined(server, SIMILAR), "another text under the same id"
    judged(server, judgement("p6", False))
    assert mined(server)["p6"] == "judged_irrelevant"


def test_a_query_may_be_judged_by_its_id_alone(server: Server) -> None:
    judged(server, {**judgement("p6"), "query": {"id": "q"}})
    assert "p6" not in mined(server, {"id": "q", "text": "whatever"})
    assert "p6" in mined(server, {"id": "r", "text": "whatever"})


def test_a_judgement_holds_for_copies_of_the_passage(server: Server) -> None:
    assert {"p0", "p4"} <= mined(server, SIMILAR).keys()
    judged(server, {**judgement("p4"), "query": SIMILAR})
    assert not {"p0", "p4"} & mined(server, SIMILAR).keys()


def test_one_judged_irrelevant_comes_back_though_a_limit_refuses_it(server: Server) -> None:
    assert "p6" not in mined(server, max_score=0.0)
    judged(server, judgement("p6", False))
    assert mined(server, max_score=0.0)["p6"] == "judged_irrelevant"
    assert "p6" not in mined(server, {**QUERY, "positives": ["p6"]}), "no judgement makes a negative of a positive"


def test_the_lines_of_a_stream_respect_judgements_too(server: Server) -> None:
    body = {"queries": [{**QUERY, "positives": []}], "num_negatives": 8, "stream": True}
    assert '"p6"' in server.client.post("/v1/mine", json=body).text
    judged(server, judgement("p6"))
    assert '"p6"' not in server.client.post("/v1/mine", json=body).text


def test_a_job_takes_what_was_judged_before_it_was_queued(server: Server) -> None:
    service = server.app.state.service
    service.processes.takes = False
    body = {"queries": [{**QUERY, "positives": []}], "job": "hone"}
    first = server.post("/v1/mine", body, 202)["id"]
    judged(server, judgement("p6"))
    assert server.post("/v1/mine", body, 202)["id"] == first, "what was judged since is no other request"
    server.post(f"/v1/jobs/{first}/cancel", None)
    second = server.post("/v1/mine", body, 202)["id"]
    positions = [service.jobs.get(job).params["judgements"] for job in (first, second)]
    assert positions == [0, service.judgements.position()] and positions[1] > 0


def test_a_judgement_is_about_the_text_that_it_met(tmp_path: Path) -> None:
    store, corpus = new_store(tmp_path)
    publish_generation(store, corpus)
    with serving(store) as server:
        judged(server, judgement("p6"))
        changed = add_corpus(store, tmp_path / "changed", {**TEXTS, "p6": "something else", "p8": TEXTS["p6"]})
        publish_generation(store, changed, seed=1)
        server.wait_for(1)
        found = mined(server, num_negatives=9)
        assert "p6" in found and "p8" not in found, "it goes on under another id"
        assert judged(server, judgement("p8")) == {"generation": 1, "stored": 0, "unchanged": 1}


def test_a_judge_is_known_by_the_key(tmp_path: Path) -> None:
    store, corpus = new_store(tmp_path)
    publish_generation(store, corpus)
    keys = Keys(f"sqlite:///{tmp_path / 'keys.db'}")
    secret, key = keys.create("ann", ["write"])
    reader, _ = keys.create("rob", ["search", "mine"])
    with serving(store, ServerConfig(keys=keys)) as server:

        def ask(secret: str, body: object, method: str = "POST") -> tuple[int, dict[str, Any]]:
            response = server.client.request(method, ROUTE, json=body, headers={"x-api-key": secret})
            return response.status_code, response.json()

        assert ask(secret, {"judgements": judgement()})[0] == 200
        assert ask(secret, {"judgements": judgement(by="ann")})[1]["unchanged"] == 1
        status, refused = ask(secret, {"judgements": judgement(by="bob")})
        assert status == 403 and f"key {key.id} judges as 'ann', not as 'bob'" in refused["error"]
        assert ask(reader, {"judgements": judgement()})[0] == 403
        assert ask(reader, None, "GET")[0] == 403, "they are named there"
        (listed,) = ask(secret, None, "GET")[1]["judgements"]
        assert (listed["by"], listed["key"]) == ("ann", key.id)
    keys.close()


def test_without_a_generation_or_a_database_nothing_is_judged(
    empty_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert judged(empty_server, judgement(), status=503)["error_type"] == "unavailable"
    assert empty_server.get(ROUTE)["judgements"] == []

    def lost(*_: object) -> None:
        raise OperationalError("select", {}, Exception("gone"))

    monkeypatch.setattr(empty_server.app.state.service.judgements, "newest", lost)
    assert "does not answer" in empty_server.get(ROUTE, 503)["error"]
