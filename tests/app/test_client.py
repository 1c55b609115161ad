import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import pytest

from app.client import ApiError, AsyncClient, Client, MiningQuery
from app.client_calls import LineSplitter
from app.routes.generations import PromotionReply
from app.schemas import JobReply
from app.server import REAP_SECONDS, ServerConfig
from retriever.artifacts import SERVED
from retriever.store import Store
from tests.app.served import WITH_RANKER, listening, new_store, publish_generation, publish_measured, wait_for
from tests.stand_ins import HashEncoder

ROOT = Path(__file__).parents[2]
QUERY: MiningQuery = {"id": "q", "text": "alpha beta", "positives": ["p0"]}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    store, corpus = new_store(tmp_path_factory.mktemp("client"))
    publish_generation(store, corpus)
    job = (sys.executable, "-c", "pass")
    with listening(store, ServerConfig(job_command=job), WITH_RANKER) as port:
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: httpx2.get(f"{url}/readyz").status_code == 200)
        yield url
        time.sleep(2 * REAP_SECONDS)  # so that no process is left behind


def test_every_call_is_answered(url: str) -> None:
    with Client(url) as client:
        assert client.ready().generation == 0
        encoded = client.encode(["alpha beta", "nu"], "passage")
        np.testing.assert_array_equal(encoded.vectors, HashEncoder(seed=0).encode_passages(["alpha beta", "nu"]))
        by_text = client.search(["alpha beta", "nu"], top_k=2, filter={"year": None}, with_text=True)
        assert [hit.id for hit in by_text.results[0]] == ["p6", "p4"] or by_text.results[0][0].text
        by_vector = client.search_vectors(encoded.vectors, encoded.space, top_k=8)
        assert by_vector == client.search(("alpha beta", "nu"), top_k=8)
        one = client.search_vectors(encoded.vectors[0], encoded.space, top_k=8)
        assert one.results == by_vector.results[:1]
        mined = client.mine([QUERY], num_negatives=3, sampler={"name": "top"})
        assert [*client.mine_lines([QUERY], num_negatives=3, sampler={"name": "top"})] == mined.results
        long: MiningQuery = {**QUERY, "text": "eta " * 600}
        with pytest.warns(UserWarning, match="^1 query is longer"):
            assert [*client.mine_lines([long])] == client.mine([long]).results
        mining = client.mine_job([QUERY], "tevatron", num_negatives=3)
        with pytest.raises(ApiError, match=r"409 conflict: .* is (queued|running|failed)"):
            [*client.result_lines(mining.id)]
        ranked = client.rerank("alpha", ["nu", "alpha", "nu " * 600], top_n=1)
        assert ranked.results[0].index == 1 and ranked.cut_pairs == 1
        said = [{"query": {"text": "theta"}, "passage": f"p{n}", "relevant": n == 3, "by": "ann"} for n in (3, 5)]
        assert client.judge(said).stored == 2
        page = client.judgements(1)
        assert [one.passage for one in client.judgements(before=page.next).judgements] == ["p3"]
        with pytest.raises(ApiError, match=r"422 invalid: query\.before"):
            client.judgements(before=0)
        job = client.rebuild()
        assert client.job(job.id).id == job.id
        assert client.cancel(job.id).outcome in ("CANCELLED", "CANCELLING", "NO_OP")
        *_, last = client.job_events(job.id)
        assert last.id == job.id and last.state in ("cancelled", "failed")
        assert job.id in [one.id for one in client.jobs().jobs] and len(client.jobs(limit=1).jobs) == 1


def test_every_call_may_be_awaited(url: str) -> None:
    async def ask() -> None:
        async with AsyncClient(url) as client:
            assert (await client.ready()).generation == 0
            encoded = await client.encode("alpha beta")
            assert encoded.vectors.shape == (1, 32)
            found = await asyncio.gather(*(client.search("alpha beta", top_k=3) for _ in range(20)))
            assert all(one == found[0] for one in found)
            assert await client.search_vectors(encoded.vectors, encoded.space, top_k=3) == found[0]
            mined = await client.mine([QUERY])
            assert [one async for one in client.mine_lines([QUERY])] == mined.results
            with pytest.warns(UserWarning, match="^1 query is longer"):
                assert len([one async for one in client.mine_lines([{**QUERY, "text": "eta " * 600}])]) == 1
            mining = await client.mine_job([QUERY])
            with pytest.raises(ApiError, match="409 conflict"):
                [one async for one in client.result_lines(mining.id)]
            assert (await client.rerank("alpha", ["nu", "alpha"])).results[0].index == 1
            said = [{"query": {"text": "theta"}, "passage": "p0", "relevant": 0}]
            assert (await client.judge(said)).stored == 1 and (await client.judge(said)).unchanged == 1
            assert (await client.judgements(1)).judgements[0].passage == "p0"
            job = await client.rebuild()
            assert (await client.job(job.id)).id == job.id
            await client.cancel(job.id)
            assert [one.state async for one in client.job_events(job.id)][-1] in ("cancelled", "failed")
            assert (await client.jobs()).total >= 2

    asyncio.run(ask())


def test_generations_are_listed_compared_and_served(tmp_path: Path) -> None:
    store, corpus = new_store(tmp_path)
    for seed, figures in enumerate(([0.5, 0.5, 0.5], [0.4, 0.7, 0.5])):
        publish_measured(store, corpus, figures, seed)
    store.generations.point(SERVED, 1)

    async def ask(url: str) -> None:
        async with AsyncClient(url) as client:
            assert [one.number for one in (await client.generations()).generations] == [3, 1]
            assert (await client.generation(3)).parents["checkpoint"] == 1
            assert (await client.diff(3, 1)).gained == 1
            assert isinstance(moved := await client.promote(3), PromotionReply) and moved.to == 3
            assert isinstance(moved := await client.rollback(), PromotionReply) and moved.to == 1

    with listening(store) as port, Client(f"http://127.0.0.1:{port}") as client:
        assert [one.number for one in client.generations(limit=1).generations] == [3]
        assert client.generation(1).served
        assert (client.diff(3, 1).gained, client.diff(3, 1).lost) == (1, 1)
        assert isinstance(moved := client.promote(3), PromotionReply) and (moved.from_, moved.by) == (1, "promote")
        assert isinstance(moved := client.rollback(), PromotionReply) and moved.to == 1
        with pytest.raises(ApiError, match="404 not_found: there is no generation 2"):
            client.promote(2)
        asyncio.run(ask(f"http://127.0.0.1:{port}"))


def test_a_server_that_may_only_read_answers_a_promotion_with_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, corpus = new_store(tmp_path)
    publish_measured(store, corpus, [0.5, 0.5, 0.5], 0)
    monkeypatch.setattr(Store, "is_writable", lambda self: False)
    with listening(store) as port, Client(f"http://127.0.0.1:{port}") as client:
        assert isinstance(job := client.promote(1, force=True), JobReply) and job.kind == "promote"


def test_a_refusal_says_what_the_server_said(url: str) -> None:
    with Client(url) as client, pytest.raises(ApiError, match=r"413 too_large: .*2048.*request") as caught:
        client.encode(["a"] * 2049)
    assert (caught.value.status, caught.value.kind) == (413, "too_large") and caught.value.request_id
    with Client(url) as client, pytest.raises(ApiError, match="positives"):
        [*client.mine_lines([{**QUERY, "positives": ["gone"]}])]

    async def ask() -> None:
        async with AsyncClient(url) as client:
            with pytest.raises(ApiError, match="409 conflict"):
                await client.search_vectors(np.zeros((1, 32), np.float32), "another")
            with pytest.raises(ApiError, match="positives"):
                [one async for one in client.mine_lines([{**QUERY, "positives": ["gone"]}])]

    asyncio.run(ask())


class Flaky(httpx2.BaseTransport, httpx2.AsyncBaseTransport):
    """Answers 503 some times, then a reply that is no JSON."""

    def __init__(self, refusals: int) -> None:
        self.left = refusals
        self.asked = 0

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self.asked += 1
        if self.asked <= self.left:
            body = {"error": "full", "error_type": "unavailable", "request_id": "r"}
            return httpx2.Response(503, headers={"retry-after": "0"}, json=body)
        return httpx2.Response(200, json={"status": "ready", "generation": 4})

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        return self.handle_request(request)


@pytest.mark.parametrize(("refusals", "retries", "asked"), [(2, 2, 3), (0, 2, 1)])
def test_what_may_be_tried_again_is(refusals: int, retries: int, asked: int) -> None:
    for_sync, for_async = Flaky(refusals), Flaky(refusals)
    client = Client("http://none", retries=retries)
    client._http = httpx2.Client(transport=for_sync, base_url="http://none")
    assert client.ready().generation == 4 and for_sync.asked == asked

    async def ask() -> int:
        client = AsyncClient("http://none", retries=retries)
        client._http = httpx2.AsyncClient(transport=for_async, base_url="http://none")
        return (await client.ready()).generation

    assert asyncio.run(ask()) == 4 and for_async.asked == asked


def test_after_the_last_try_the_refusal_is_raised() -> None:
    client = Client("http://none", retries=1)
    client._http = httpx2.Client(transport=Flaky(2), base_url="http://none")
    with pytest.raises(ApiError, match=r"503 unavailable: full \(request r\)"):
        client.ready()


def test_a_key_is_sent(url: str) -> None:
    with Client(url, api_key="secret") as client:
        assert client._http.headers["authorization"] == "Bearer secret"


def test_the_example_runs(url: str) -> None:
    command = [sys.executable, str(ROOT / "examples" / "http_client.py"), "alpha beta", url]
    run = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "generation 0: vectors of 32 numbers" in run.stdout
    for heading in ("dense", "lexical", "hybrid", "hard negatives, if p"):
        assert heading in run.stdout


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_lines_end_at_a_newline_alone(size: int) -> None:
    lines = ["one\u2028and\x85the\u2029same", "", "two\r", "\U0001f50e"]
    sent = "\n".join(lines).encode()
    splitter = LineSplitter()
    found = [line for start in range(0, len(sent), size) for line in splitter.take(sent[start : start + size])]
    assert [*found, *splitter.rest()] == lines
    assert LineSplitter().rest() == []
