from collections.abc import Iterator
from pathlib import Path

import pytest

from app.routes.generations import DiffReply, GenerationReply, GenerationsReply, PromotionReply
from retriever.artifacts import SERVED
from retriever.data import Corpus
from retriever.store import Store
from tests.app.served import Server, new_store, publish_generation, publish_measured, serving, wait_for


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server that answers from generation 1; generation 3 is worse on dev, 5 is of an older checkpoint."""
    store, corpus = new_store(tmp_path)
    for figures, seed in (([0.5, 0.5, 0.5], 2), ([0.4, 0.7, 0.5], 3), ([0.9, 0.9, 0.9], 1)):
        publish_measured(store, corpus, figures, seed)
    store.generations.point(SERVED, 1)
    with serving(store) as server:
        yield server


def test_generations_are_listed_with_lineage_figures_and_what_is_served(server: Server) -> None:
    listed = GenerationsReply.model_validate(server.get("/v1/generations"))
    assert [shown.number for shown in listed.generations] == [5, 3, 1] and listed.served == 1
    assert [shown.served for shown in listed.generations] == [False, False, True]
    assert len(server.get("/v1/generations?limit=1")["generations"]) == 1
    one = GenerationReply.model_validate(server.get("/v1/generations/3"))
    assert (one.parents, one.facts["step"]) == ({"checkpoint": 3, "corpus": 0}, 30)
    assert server.get("/v1/generations/4", 404)["error_type"] == "not_found"
    (server.store.generations.path(5) / "manifest.json").write_text("{")
    assert [shown["number"] for shown in server.get("/v1/generations")["generations"]] == [3, 1]


@pytest.mark.parametrize("number", ["-1", "9" * 300])
def test_a_number_that_no_generation_can_have_is_refused(server: Server, number: str) -> None:
    for path in (number, f"{number}/diff/1", f"1/diff/{number}"):
        assert server.get(f"/v1/generations/{path}", 422)["error_type"] == "invalid"
    server.post(f"/v1/generations/{number}/promote", None, 422)


def test_a_promotion_swaps_and_a_rollback_swaps_back(server: Server) -> None:
    moved = PromotionReply.model_validate(server.post("/v1/generations/3/promote", None))
    assert (moved.from_, moved.to, moved.by) == (1, 3, "promote")
    server.wait_for(3)
    assert server.post("/v1/search", {"queries": "alpha"})["generation"] == 3
    assert server.post("/v1/generations/rollback", None)["to"] == 1
    server.wait_for(1)
    refused = server.post("/v1/generations/rollback", None, 409)
    assert refused["error"].startswith("generations: no intact generation was served before")
    assert [line["status"] for line in server.log_lines("path_hidden")] == [409]
    assert str(server.store.root) in server.log_lines("path_hidden")[0]["reason"]
    assert [move["by"] for move in server.get("/v1/generations")["promotions"]] == ["rollback", "promote"]


def test_a_damaged_pointer_is_named_and_hides_no_generation(server: Server) -> None:
    (server.store.generations.folder / "WARMUP").write_text("three")
    assert "generations/WARMUP: not a pointer" in server.get("/v1/generations", 503)["error"]
    assert not server.log_lines("generation_unreadable")


def test_served_moves_while_another_process_builds(server: Server) -> None:
    with Store(server.store.root).generations.writer():
        assert server.post("/v1/generations/3/promote", None)["to"] == 3
        assert server.post("/v1/generations/rollback", None)["to"] == 1


def test_what_the_gate_refuses_needs_force(server: Server) -> None:
    refused = server.post("/v1/generations/5/promote", None, 409)
    assert "step 10, served 20" in refused["error"]
    forced = server.post("/v1/generations/5/promote?force=true", None)
    assert forced["by"] == "force" and {"step", "dev"} < {check["name"] for check in forced["checks"]}


def test_the_difference_of_two_generations_is_that_of_their_queries(server: Server) -> None:
    compared = DiffReply.model_validate(server.get("/v1/generations/3/diff/1"))
    assert (compared.queries, compared.gained, compared.lost) == (3, 1, 1)
    assert [(change.id, change.text) for change in compared.results] == [("a", "one"), ("b", "two")]
    assert [change.difference for change in compared.results] == pytest.approx([-0.1, 0.2])
    server.get("/v1/generations/3/diff/9", 404)


def test_generations_without_dev_queries_do_not_compare(server: Server) -> None:
    corpus = Corpus(server.store.corpora.at(0))
    bare = publish_generation(server.store, corpus, seed=4, serve=False)
    assert "no dev queries" in server.get(f"/v1/generations/{bare.number}/diff/1", 409)["error"]


def test_a_server_that_may_only_read_leaves_the_move_to_a_job(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "is_writable", lambda self: False)
    server.app.state.service.processes.takes = False
    job = server.post("/v1/generations/3/promote", None, 202)
    assert (job["kind"], job["state"]) == ("promote", "queued")
    assert server.post("/v1/generations/3/promote", None, 202)["id"] == job["id"]
    assert "wait for it or cancel it" in server.post("/v1/generations/5/promote", None, 409)["error"]
    assert server.store.generations.pointed(SERVED) == 1
    taken = server.app.state.service.jobs.take("elsewhere")
    assert taken.params == {"number": 3, "force": False}
    assert server.post("/v1/generations/rollback", None, 202)["kind"] == "rollback"
    wait_for(lambda: server.get(f"/v1/jobs/{job['id']}")["state"] == "queued")
