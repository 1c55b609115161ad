"""The promise that clients of others speak to this server as they are: each drives a real one over a socket."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cohere
import httpx2
import numpy as np
import openai
import pytest
from huggingface_hub import InferenceClient
from langchain_openai import OpenAIEmbeddings
from pydantic import SecretStr

from app.replies import ERROR_TYPES
from app.server import ServerConfig
from tests.app.served import OPENERS, RANKER, TEXTS, WITH_RANKER, listening, new_store, publish_generation
from tests.stand_ins import HashEncoder

ASKED = ["alpha beta", "eta theta iota", "nu"]
EXPECTED = HashEncoder(seed=0).encode_queries(ASKED)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with a ranker, ready."""
    store, corpus = new_store(tmp_path_factory.mktemp("faces"))
    publish_generation(store, corpus)
    with listening(store, ServerConfig(max_body_bytes=1 << 20), WITH_RANKER) as port:
        yield wait_until_ready(port)


@pytest.fixture
def without_ranker(tmp_path: Path) -> Iterator[str]:
    store, corpus = new_store(tmp_path)
    publish_generation(store, corpus)
    with listening(store, openers=OPENERS) as port:
        yield wait_until_ready(port)


def wait_until_ready(port: int) -> str:
    url = f"http://127.0.0.1:{port}"
    with httpx2.Client(transport=httpx2.HTTPTransport(retries=3)) as client:
        for _ in range(3000):
            if client.get(f"{url}/readyz").status_code == 200:
                return url
    raise AssertionError("never ready")


def of_openai(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def test_openai_encodes(url: str) -> None:
    with of_openai(url) as client:
        for encoding in (openai.omit, "float", "base64"):
            answer = client.embeddings.with_raw_response.create(
                model="query",
                input=ASKED,
                encoding_format=encoding,
            )
            assert answer.headers["x-hone-generation"] == "0"
            assert answer.headers["x-hone-cut-inputs"] == "0"
            found = answer.parse()
            if encoding != "base64":
                np.testing.assert_array_equal(np.array([one.embedding for one in found.data], np.float32), EXPECTED)
            assert [one.index for one in found.data] == [0, 1, 2]
            assert (found.model, found.object) == ("query", "list")
            assert (found.usage.prompt_tokens, found.usage.total_tokens) == (6, 6)
        one = client.embeddings.create(model="anything", input="nu", dimensions=32, user="someone")
        np.testing.assert_array_equal(np.array(one.data[0].embedding, np.float32), EXPECTED[2])
        short = client.embeddings.create(model="anything", input="nu", dimensions=7).data[0].embedding
        first = EXPECTED[2][:7]
        np.testing.assert_allclose(short, first / np.linalg.norm(first), atol=1e-6)


def test_openai_s_errors_are_openai_s(url: str, without_ranker: str) -> None:
    with of_openai(url) as client:
        with pytest.raises(openai.UnprocessableEntityError) as caught:
            client.embeddings.create(model="query", input="a", dimensions=33)
        body: Any = caught.value.body
        assert body["param"] == "dimensions" and "33, but this model has 32" in body["message"]
        assert (body["type"], body["code"]) == ("invalid_request_error", "invalid")
        with pytest.raises(openai.UnprocessableEntityError, match="another tokenizer's"):
            client.embeddings.create(model="query", input=[[1, 2, 3]])
        for inputs, named in ((["a"] * 2049, "2048"), (["a " * 30_000] * 20, "1048576 bytes")):
            with pytest.raises(openai.APIStatusError, match=named) as refused:
                client.embeddings.create(model="query", input=inputs)
            assert refused.value.response.status_code == 413
        with pytest.raises(openai.UnprocessableEntityError, match=r"body\.input"):
            client.embeddings.create(model="query", input="")


def test_openai_is_told_that_sides_differ(tmp_path: Path) -> None:
    class Prompted(HashEncoder):
        def __init__(self, seed: int) -> None:
            super().__init__(seed=seed)
            self.alike = False

    store, corpus = new_store(tmp_path)
    publish_generation(store, corpus)
    with listening(store, openers=type(OPENERS)(lambda _: Prompted(0))) as port:
        url = wait_until_ready(port)
        with of_openai(url) as client, pytest.raises(openai.NotFoundError, match="'query' or 'passage'"):
            client.embeddings.create(model="text-embedding-3-small", input="a")
        with of_openai(url) as client:
            client.embeddings.create(model="hone-passage", input="a")
        assert httpx2.post(f"{url}/embed", json={"inputs": "a"}).status_code == 422
        assert httpx2.post(f"{url}/embed", json={"inputs": "a", "prompt_name": "document"}).status_code == 200


def test_langchain_encodes(url: str) -> None:
    model = OpenAIEmbeddings(
        base_url=f"{url}/v1", api_key=SecretStr("none"), model="passage", check_embedding_ctx_length=False
    )
    np.testing.assert_allclose(model.embed_documents(ASKED), EXPECTED, atol=1e-7)
    np.testing.assert_allclose(model.embed_query(ASKED[0]), EXPECTED[0], atol=1e-7)


def test_cohere_reranks(url: str) -> None:
    documents = [*TEXTS.values()]
    scores = RANKER.score(["alpha beta"] * len(documents), documents)
    best = (-scores).argsort(kind="stable").tolist()
    with cohere_client(cohere.Client, url) as first, cohere_client(cohere.ClientV2, url) as second:
        answer = first.rerank(query="alpha beta", documents=documents, model="any", return_documents=True)
        assert [one.index for one in answer.results] == best
        assert [one.document and one.document.text for one in answer.results] == [documents[i] for i in best]
        expected = 1 / (1 + np.exp(-scores[best]))
        np.testing.assert_allclose([one.relevance_score for one in answer.results], expected, atol=1e-6)
        objects = [{"text": text} for text in documents]
        given: Any = first.rerank(query="alpha beta", documents=objects, top_n=2)
        assert [(one.index, one.document) for one in given.results] == [(i, None) for i in best[:2]]
        newer = second.rerank(query="alpha beta", documents=documents, model="any", top_n=3)
        assert [one.index for one in newer.results] == best[:3]


def cohere_client(kind: Any, url: str) -> Any:
    return kind(api_key="none", base_url=url)


def test_cohere_is_told_that_there_is_no_ranker(without_ranker: str) -> None:
    with cohere_client(cohere.ClientV2, without_ranker) as client, pytest.raises(cohere.core.ApiError) as caught:
        client.rerank(query="a", documents=["b"], model="any")
    assert caught.value.status_code == 409 and "hone serve --ranker" in caught.value.body["error"]


def test_jina_s_shape_of_reranking(url: str) -> None:
    body = {"model": "any", "query": "alpha beta", "documents": ["nu", "alpha beta"], "top_k": 1}
    for route in ("/v1/rerank", "/v2/rerank"):
        answer = httpx2.post(f"{url}{route}", json={**body, "return_documents": True})
        assert answer.headers["x-hone-generation"] == "0"
        found = answer.json()
        assert [(one["index"], one["document"]["text"]) for one in found["results"]] == [(1, "alpha beta")]
        assert found["usage"]["total_tokens"] == 7
        assert httpx2.post(f"{url}{route}", json=body).json()["results"][0].keys() == {"index", "relevance_score"}
        assert answer.headers["x-hone-cut-inputs"] == "0"
        long = {**body, "documents": ["nu " * 600, "alpha beta", "eta " * 700]}
        cut = httpx2.post(f"{url}{route}", json=long)
        assert cut.headers["x-hone-cut-inputs"] == "2" and cut.json()["cut_pairs"] == 2
    spans = {"query": "a", "documents": ["b"], "relevant_spans": {"enabled": True}}
    assert "relevant_spans" in httpx2.post(f"{url}/v2/rerank", json=spans).json()["error"]


def test_huggingface_hub_encodes(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for address in (url, f"{url}/embed"):
        client = InferenceClient(address)
        np.testing.assert_array_equal(client.feature_extraction(ASKED), EXPECTED)
        np.testing.assert_array_equal(client.feature_extraction(ASKED[0], normalize=True, truncate=True), EXPECTED[:1])


def test_text_embeddings_inference_s_routes(url: str) -> None:
    with httpx2.Client(base_url=url) as client:
        answer = client.post("/embed", json={"inputs": ASKED, "truncate": False, "prompt_name": "query"})
        np.testing.assert_allclose(answer.json(), EXPECTED, atol=1e-6)
        for name in ("x-queue-time", "x-inference-time", "x-total-time", "x-compute-time"):
            assert 0 <= int(answer.headers[name]) < 60_000
        assert (answer.headers["x-compute-tokens"], answer.headers["x-compute-characters"]) == ("6", "26")
        assert answer.headers["x-hone-generation"] == "0"
        long = client.post("/embed", json={"inputs": ["a " * 513, "b"], "truncate": False})
        assert long.status_code == 413 and "1 of 2 inputs is longer than 512 tokens" in long.json()["error"]
        cut = client.post("/embed", json={"inputs": ["a " * 513, "b"]})
        assert (cut.status_code, cut.headers["x-hone-cut-inputs"]) == (200, "1")
        cut = client.post("/v1/embeddings", json={"model": "passage", "input": ["a " * 513, "b"]})
        assert (cut.status_code, cut.headers["x-hone-cut-inputs"]) == (200, "1")
        assert client.post("/embed", json={"inputs": "a", "normalize": False}).status_code == 422
        assert client.post("/embed", json={"inputs": "a", "dimensions": 33}).status_code == 422
        assert np.linalg.norm(client.post("/embed", json={"inputs": "a", "dimensions": 31}).json()[0]) == pytest.approx(
            1
        )
        body = {"query": "alpha beta", "texts": ["nu", "alpha beta"], "raw_scores": True, "return_text": True}
        ranked = client.post("/rerank", json=body)
        assert [(one["index"], one["text"]) for one in ranked.json()] == [(1, "alpha beta"), (0, "nu")]
        assert ranked.json()[0]["score"] == pytest.approx(1.98)
        likely = client.post("/rerank", json={**body, "raw_scores": False}).json()
        assert likely[0]["score"] == pytest.approx(1 / (1 + np.exp(-1.98)))
        assert client.get("/health").content == b""
        told = client.get("/info").json()
        assert (told["max_input_length"], told["max_client_batch_size"], told["auto_truncate"]) == (512, 2048, True)
        assert told["max_concurrent_requests"] == (1 << 20) // 512
        assert told["model_type"] == {"embedding": {"pooling": "mean"}}


@pytest.mark.parametrize(
    ("route", "body", "status"),
    [
        ("/embed", {"inputs": []}, 400),
        ("/", {"inputs": ""}, 400),
        ("/embed", {"inputs": ["a", ""]}, 400),
        ("/rerank", {"query": "a", "texts": []}, 400),
        ("/embed", {"inputs": 1}, 422),
        ("/embed", {"inputs": {}}, 422),
        ("/rerank", {"query": "", "texts": ["a"]}, 422),
        ("/embed", {"inputs": ["a"] * 2049}, 413),
    ],
)
def test_bad_input_has_the_status_that_text_embeddings_inference_gives_it(
    url: str, route: str, body: dict[str, object], status: int
) -> None:
    answer = httpx2.post(f"{url}{route}", json=body)
    assert (answer.status_code, answer.json()["error_type"]) == (status, ERROR_TYPES[status]), answer.text


def test_without_a_ranker_the_inference_route_says_so(without_ranker: str) -> None:
    answer = httpx2.post(f"{without_ranker}/rerank", json={"query": "a", "texts": ["b"]})
    assert (answer.status_code, answer.json()["error_type"]) == (409, "conflict")
