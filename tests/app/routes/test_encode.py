import base64
import threading
from pathlib import Path

import numpy as np
import pytest

from app.admission import AdmissionConfig, Lane
from app.schemas import EncodeReply
from app.server import ServerConfig
from tests.app.served import Server, new_store, publish_generation, serving
from tests.stand_ins import HashEncoder


def test_one_text_and_a_list_are_treated_alike(server: Server) -> None:
    one = server.post("/v1/encode", {"inputs": "alpha beta"})
    listed = server.post("/v1/encode", {"inputs": ["alpha beta", "gamma"]})
    assert one["embeddings"] == listed["embeddings"][:1]
    assert len(listed["embeddings"]) == 2
    EncodeReply.model_validate(one)


@pytest.mark.parametrize("input_type", ["query", "passage"])
def test_vectors_are_the_encoder_s_to_the_last_bit(server: Server, input_type: str) -> None:
    texts = ["alpha beta", "gamma"]
    expected = HashEncoder(seed=0).encode_queries(texts)
    body = {"inputs": texts, "input_type": input_type}
    floats = server.post("/v1/encode", body)
    assert np.array_equal(np.array(floats["embeddings"], np.float32), expected)
    packed = server.post("/v1/encode", {**body, "encoding_format": "base64"})["embeddings"]
    assert np.array_equal(np.array([np.frombuffer(base64.b64decode(text), "<f4") for text in packed]), expected)
    assert (floats["dimensions"], floats["space"]) == (32, "hash-32-0")
    assert server.metric("hone_encoded_texts_total", input_type=input_type) == 4


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        ({"inputs": []}, 422, "body.inputs"),
        ({"inputs": [""]}, 422, "body.inputs.0"),
        ({"inputs": [1]}, 422, "body.inputs.0"),
        ({"inputs": ["a"] * 2049}, 413, "2048"),
        ({"inputs": "a" * 65_537}, 413, "65536"),
        ({"inputs": "a", "input_type": "document"}, 422, "body.input_type"),
        ({"inputs": "a", "inputt_type": "query"}, 422, "body.inputt_type"),
        ({}, 422, "body.inputs"),
    ],
)
def test_invalid_requests_are_refused_by_name(server: Server, body: object, status: int, named: str) -> None:
    assert named in server.post("/v1/encode", body, status)["error"]


def test_the_first_numbers_of_a_vector_keep_its_length_and_are_of_another_space(server: Server) -> None:
    whole = server.post("/v1/encode", {"inputs": "alpha beta"})
    short = server.post("/v1/encode", {"inputs": "alpha beta", "dimensions": 8})
    first = np.array(whole["embeddings"][0][:8])
    expected = first * np.linalg.norm(whole["embeddings"][0]) / np.linalg.norm(first)
    np.testing.assert_allclose(short["embeddings"][0], expected, atol=1e-6)
    assert (short["dimensions"], short["space"]) == (8, "hash-32-0/8")
    body = {"vectors": short["embeddings"], "space": short["space"]}
    assert server.client.post("/v1/search", json=body).status_code == 409
    assert server.post("/v1/encode", {"inputs": "alpha beta", "dimensions": 32}) == whole
    assert "but this model has 32" in server.post("/v1/encode", {"inputs": "a", "dimensions": 33}, 422)["error"]


def test_half_a_surrogate_pair_is_no_text(server: Server) -> None:
    response = server.client.post(
        "/v1/encode", content=b'{"inputs": "\\ud800"}', headers={"content-type": "application/json"}
    )
    assert response.status_code == 422


def test_nothing_is_encoded_before_a_snapshot_is_loaded(empty_server: Server) -> None:
    response = empty_server.client.post("/v1/encode", json={"inputs": "a"})
    assert (response.status_code, response.json()["error_type"]) == (503, "unavailable")
    assert int(response.headers["retry-after"]) > 0


def test_inputs_that_are_cut_are_counted(server: Server) -> None:
    assert server.post("/v1/encode", {"inputs": ["a " * 513, "b"]})["cut_inputs"] == 1


def test_more_tokens_than_can_be_taken_now_or_ever(tmp_path: Path) -> None:
    store, corpus = new_store(tmp_path)
    publish_generation(store, corpus)
    narrow = AdmissionConfig(batch_tokens=100, patient_batch_tokens=100, queue_tokens=512)
    with serving(store, ServerConfig(admission=narrow)) as server:
        for inputs in ("a " * 512, ["a " * 256, "b " * 256]):
            server.post("/v1/encode", {"inputs": inputs})
        assert "512" in server.post("/v1/encode", {"inputs": ["c " * 256, "d " * 257]}, 413)["error"]
        server.app.state.service.admission.queued_tokens = 500
        response = server.client.post("/v1/encode", json={"inputs": "a " * 13})
        assert (response.status_code, response.json()["error_type"]) == (429, "overloaded")
        assert int(response.headers["retry-after"]) > 0


def test_what_is_not_computed_in_time_may_be_tried_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    door, open_again = server.app.state.service.admission, threading.Event()
    encoder = server.app.state.service.serving.snapshot.encoder
    lane = Lane(lambda items: encoder.encode_tokens("query", items) if open_again.wait(30) else [])
    monkeypatch.setitem(server.app.state.service.serving.snapshot.models._towers.lanes, "query", lane)
    monkeypatch.setattr(door, "config", AdmissionConfig(deadline_seconds=0.05))
    response = server.client.post("/v1/encode", json={"inputs": "alpha"})
    assert (response.status_code, response.json()["error_type"]) == (503, "unavailable")
    assert "not computed within" in response.json()["error"] and int(response.headers["retry-after"]) > 0
    open_again.set()
    monkeypatch.setattr(door, "config", AdmissionConfig())
    assert server.post("/v1/encode", {"inputs": "alpha"})["generation"] == 0
