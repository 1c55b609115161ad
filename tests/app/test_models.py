import asyncio
import io
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.admission import Admission, AdmissionConfig, NotComputedError, TooManyTokensError
from app.models import SLICE_CHARACTERS, SLICE_TEXTS, Models, NoRankerError, slices
from app.telemetry import json_log
from retriever.encoder import ModelConfig, create_encoder
from retriever.inference import ModelEncoder
from retriever.protocols import FloatArray, Progress, Side, silent
from retriever.ranker import RankerConfig, load_ranker
from retriever.scoring import TorchRanker
from tests.stand_ins import WORDS, HashEncoder, OverlapRanker
from tests.tiny_model import write_tiny_model
from tests.tiny_ranker import write_tiny_ranker

TEXTS = [" ".join(WORDS[start : start + length]) for start, length in zip(range(40), [3, 9, 1, 34, 6] * 8, strict=True)]


def admission() -> Admission:
    return Admission(AdmissionConfig(batch_tokens=256), json_log(io.StringIO()))


async def alone_together_and_apart(models: Models, side: Side, texts: Sequence[str]) -> list[FloatArray]:
    """Encode ``texts`` one by one, in one request, and as requests that meet in the queue."""
    door = admission()
    door.start()
    try:
        alone = [(await models.encode(door, side, [text])).values for text in texts]
        together = (await models.encode(door, side, texts)).values
        calls = [models.encode(door, side, [text], patient=place % 2 == 0) for place, text in enumerate(texts)]
        apart = [done.values for done in await asyncio.gather(*calls)]
    finally:
        door.stop()
    return [np.concatenate(alone), together, np.concatenate(apart)]


def in_any_company(encoder: ModelEncoder, texts: Sequence[str]) -> tuple[FloatArray, list[FloatArray]]:
    """Encode on the passage side, whose vectors are not kept from one request to the next."""
    found = asyncio.run(alone_together_and_apart(Models(encoder), "passage", texts))
    return encoder.encode_passages(texts), found


@pytest.mark.slow
def test_a_real_model_gives_a_text_one_vector_in_any_company() -> None:
    long = " ".join(["retrieval of passages by meaning"] * 30)
    texts = ["a", "read a file line by line", long, "how do I close a socket", f"{long} again"]
    model = create_encoder(ModelConfig("minilm"))
    expected, found = in_any_company(ModelEncoder(model, "fp32", device="cpu"), texts)
    assert all(np.abs(vectors - expected).max() < 1e-5 for vectors in found)
    expected, found = in_any_company(ModelEncoder(model, "bf16", device="cpu"), texts)
    for vectors in found:
        assert (1 - (vectors * expected).sum(axis=1)).max() < 1e-3, "by cosine"
        assert np.abs(vectors - expected).max() < 4e-3, "any number: some bits of bf16"


def test_a_text_has_one_vector_in_any_company(tmp_path: Path) -> None:
    model = create_encoder(ModelConfig(str(write_tiny_model(tmp_path))))
    expected, found = in_any_company(ModelEncoder(model, device="cpu"), TEXTS)
    assert all(np.abs(vectors - expected).max() < 1e-5 for vectors in found)


class Counting(HashEncoder):
    """Remembers the queries that it encoded."""

    def __init__(self) -> None:
        super().__init__()
        self.queries: list[str] = []

    def encode_queries(self, texts: Sequence[str], progress: Progress = silent) -> FloatArray:
        self.queries += texts
        return super().encode_queries(texts, progress)


def test_a_query_is_computed_once_and_counted_each_time() -> None:
    encoder = Counting()
    models = Models(encoder)

    async def ask() -> None:
        door = admission()
        door.start()
        try:
            for texts in (["a b", "c", "a b"], ["c", "d e f"]):
                done = await models.encode(door, "query", texts)
                np.testing.assert_allclose(done.values, HashEncoder().encode_queries(texts), atol=1e-6)
                assert done.tokens == sum(len(text.split()) for text in texts) and done.cut == 0
        finally:
            door.stop()

    asyncio.run(ask())
    assert sorted(encoder.queries) == ["a b", "c", "d e f"]


def test_texts_that_are_cut_are_counted_and_long_ones_tokenised_off_the_loop() -> None:
    async def ask() -> None:
        door = admission()
        door.start()
        try:
            done = await Models(HashEncoder()).encode(door, "passage", ["a " * 600, "b", "c " * 8000])
            assert (done.cut, done.tokens) == (2, 512 + 1 + 512)
        finally:
            door.stop()

    asyncio.run(ask())


def test_pairs_are_scored_like_the_ranker_scores_them(tmp_path: Path) -> None:
    ranker = TorchRanker(load_ranker(RankerConfig(str(write_tiny_ranker(tmp_path)))), device="cpu")

    async def ask() -> FloatArray:
        door = admission()
        door.start()
        try:
            calls = [Models(HashEncoder(), ranker).score(door, "baka beki", TEXTS[i : i + 10]) for i in (0, 10, 20, 30)]
            return np.concatenate([done.values for done in await asyncio.gather(*calls)])
        finally:
            door.stop()

    np.testing.assert_allclose(asyncio.run(ask()), ranker.score(["baka beki"] * 40, TEXTS), atol=1e-5)


def test_scores_need_a_ranker() -> None:
    with pytest.raises(NoRankerError, match="--ranker"):
        asyncio.run(Models(HashEncoder()).score(admission(), "a", ["b"]))
    assert Models(HashEncoder(), OverlapRanker()).longest == 512


class Elsewhere(OverlapRanker):
    """Remembers in which threads it tokenised."""

    def __init__(self) -> None:
        super().__init__()
        self.threads = list[int]()

    def tokenize(self, queries: Sequence[str], passages: Sequence[str]) -> tuple[list[Any], list[int], int]:
        self.threads.append(threading.get_ident())
        return super().tokenize(queries, passages)


def scored(models: Models, query: str, passages: Sequence[str]) -> None:
    door = admission()
    door.start()
    try:
        asyncio.run(models.score(door, query, passages))
    finally:
        door.stop()


def test_a_query_counts_once_for_each_of_its_passages() -> None:
    ranker = Elsewhere()
    models = Models(HashEncoder(), ranker)
    scored(models, "alpha", ["beta"] * 8)
    assert ranker.threads == [threading.get_ident()]
    scored(models, "alpha" * 1000, ["beta"] * 8)
    assert ranker.threads[1] != threading.get_ident(), "much text, so not on the loop"
    with pytest.raises(TooManyTokensError, match=r"with 80 passages is read as 20000000, the limit is 16777216; short"):
        scored(models, "alpha" * 50_000, ["beta"] * 80)
    assert len(ranker.threads) == 2


@given(lengths=st.lists(st.integers(0, 100_000), max_size=200))
def test_slices_hold_all_texts_in_order_and_little_text_each(lengths: list[int]) -> None:
    parts = [range(len(lengths))[part] for part in slices(lengths)]
    assert [place for part in parts for place in part] == [*range(len(lengths))]
    for part in parts:
        assert 1 <= len(part) <= SLICE_TEXTS
        assert len(part) == 1 or sum(lengths[place] for place in part) <= SLICE_CHARACTERS


def test_waiting_for_a_turn_has_a_deadline() -> None:
    models = Models(HashEncoder())
    door = Admission(AdmissionConfig(batch_tokens=256, deadline_seconds=0.05), json_log(io.StringIO()))
    with models._towers.turn, pytest.raises(NotComputedError, match=r"not tokenised within 0.1 s; try again later"):
        asyncio.run(models.encode(door, "passage", ["a"]))


def test_nobody_waits_on_the_loop_for_another_s_texts() -> None:
    ranker = Elsewhere()
    models = Models(HashEncoder(), ranker)
    assert models._pairs is not None
    turn = models._pairs.turn
    turn.acquire()
    threading.Timer(0.2, turn.release).start()
    scored(models, "alpha", ["beta"])
    assert ranker.threads[0] != threading.get_ident()
