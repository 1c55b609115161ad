from pathlib import Path

import pytest

from app.admission import AdmissionConfig
from app.draining import start_draining
from app.server import ServerConfig
from retriever.artifacts import SERVED
from retriever.data import Corpus
from tests.app.served import Server, damage, new_store, publish_generation, serving, wait_for


def test_alive_and_ready(server: Server) -> None:
    assert server.get("/livez") == {"status": "live"}
    assert server.get("/readyz") == {"status": "ready", "generation": 0}


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health"])
def test_probes_may_ask_by_head(server: Server, path: str) -> None:
    answer = server.client.head(path)
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize("path", ["/readyz", "/health"])
def test_a_server_that_drains_is_not_ready(server: Server, path: str) -> None:
    start_draining(server.app)
    assert server.client.head(path).status_code == 503
    answer = server.client.get(path)
    assert (answer.status_code, answer.json()["error"]) == (503, "the server is about to end; ask another one")
    assert int(answer.headers["retry-after"]) > 0 and server.client.get("/livez").status_code == 200


def test_alive_but_not_ready_without_a_generation(empty_server: Server) -> None:
    assert empty_server.get("/livez") == {"status": "live"}
    assert "hone index" in empty_server.get("/readyz", 503)["error"]
    assert "Nothing is served yet" in empty_server.client.get("/").text


def test_ready_as_soon_as_the_first_generation_is_served(empty_server: Server) -> None:
    store = empty_server.store
    corpus = store.corpora.get()
    assert corpus is not None
    publish_generation(store, Corpus(corpus))
    empty_server.wait_for(0)
    assert empty_server.get("/readyz")["generation"] == 0


def test_not_ready_says_why_the_snapshot_cannot_be_loaded(tmp_path: Path) -> None:
    store, corpus = new_store(tmp_path)
    damage(publish_generation(store, corpus, serve=False).path / "index.faiss")
    with serving(store) as server:
        store.generations.point(SERVED, 0)
        wait_for(lambda: bool(server.log_lines("swap_failed")))
        said = server.get("/readyz", 503)["error"]
        assert "generations: no intact artifact" in said
        assert str(tmp_path) not in said + server.client.get("/").text + server.get("/health", 503)["error"]
        (line,) = server.log_lines("swap_failed")
        assert str(tmp_path) in line["exception"]


def test_metrics_are_in_prometheus_text_format(server: Server) -> None:
    server.post("/v1/search", {"queries": "alpha"})
    response = server.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    lines = response.text.splitlines()
    assert "hone_generation_number 0.0" in lines
    assert 'hone_requests_total{method="POST",route="/v1/search",status="200"} 1.0' in lines
    assert 'hone_jobs{state="running"} 0.0' in lines
    assert any(line.startswith("process_resident_memory_bytes") for line in lines)


def test_the_start_page_shows_the_generation_and_links_the_routes(server: Server) -> None:
    page = server.client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert '<a href="/docs">' in page.text
    assert "<tr><th>generation</th><td>0</td></tr>" in page.text
    assert "<tr><th>dev nDCG@10</th><td>0.5000</td></tr>" in page.text


def test_not_ready_while_the_model_is_away(server: Server) -> None:
    server.app.state.service.admission.problem = "the model's worker died"
    response = server.client.get("/readyz")
    assert (response.status_code, response.json()["error"]) == (503, "the model's worker died")
    refused = server.client.post("/v1/encode", json={"inputs": "a"})
    assert refused.status_code == 503 and int(refused.headers["retry-after"]) > 0
    server.app.state.service.admission.problem = ""
    assert server.get("/readyz")["generation"] == 0


def test_limits_that_the_model_cannot_live_with_keep_it_from_being_served(tmp_path: Path) -> None:
    store, corpus = new_store(tmp_path)
    publish_generation(store, corpus, serve=False)
    narrow = AdmissionConfig(batch_tokens=100, patient_batch_tokens=100, queue_tokens=500)
    with serving(store, ServerConfig(admission=narrow)) as server:
        store.generations.point(SERVED, 0)
        wait_for(lambda: bool(server.log_lines("swap_failed")))
        assert "the model reads 512 tokens" in server.get("/readyz", 503)["error"]
