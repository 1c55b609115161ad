import io
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from app.snapshot import Openers, Serving, load_snapshot
from app.telemetry import json_log
from retriever.artifacts import SERVED, Artifact
from retriever.data import Corpus
from retriever.durable import link_tree
from retriever.errors import CorruptError, InputError, StoreError
from retriever.protocols import FloatArray, Progress, silent
from retriever.store import Store
from tests.app.served import OPENERS, add_corpus, damage, new_store, open_encoder, publish_generation, wait_for
from tests.stand_ins import HashEncoder, OverlapRanker


@pytest.fixture
def made(tmp_path: Path) -> tuple[Store, Corpus]:
    return new_store(tmp_path)


def fail(message: str) -> None:
    pytest.fail(message)


class Follower:
    """A Serving that is stepped by hand, with what it said."""

    def __init__(self, store: Store, opener: Callable[[Artifact], Any] = open_encoder) -> None:
        self.results: list[str] = []
        self._stream = io.StringIO()
        self.serving = Serving(store, Openers(opener), json_log(self._stream), self.results.append)

    def step(self) -> int | None:
        self.serving.catch_up()
        return self.serving.number

    def said(self) -> list[str]:
        return [json.loads(line)["event"] for line in self._stream.getvalue().splitlines()]


def test_a_snapshot_holds_what_served_names(made: tuple[Store, Corpus]) -> None:
    publish_generation(*made, seed=1)
    publish_generation(*made, seed=2, serve=False)
    snapshot = load_snapshot(made[0], OPENERS, fail)
    assert (snapshot.generation.number, snapshot.space) == (0, "hash-32-1")
    assert snapshot.corpus.sha256 == made[1].sha256
    rows, scores = snapshot.searcher.search(snapshot.encoder.encode_queries(["eta theta iota"]), 1)
    assert (rows[0, 0], scores[0, 0]) == (3, pytest.approx(1))
    assert load_snapshot(made[0], OPENERS, fail, number=1).space == "hash-32-2"


def test_nothing_served_says_what_to_do(made: tuple[Store, Corpus]) -> None:
    with pytest.raises(InputError, match="hone index"):
        load_snapshot(made[0], OPENERS, fail)


def test_a_damaged_generation_is_said_and_the_one_before_it_taken(made: tuple[Store, Corpus]) -> None:
    publish_generation(*made, seed=1)
    damage(publish_generation(*made, seed=2).path / "vectors" / "00000.npy")
    warnings: list[str] = []
    assert load_snapshot(made[0], OPENERS, warnings.append).generation.number == 0
    assert len(warnings) == 1 and "vectors/00000.npy" in warnings[0]
    with pytest.raises(CorruptError):
        load_snapshot(made[0], OPENERS, fail, number=1)


def test_parts_that_do_not_belong_together_are_refused(made: tuple[Store, Corpus]) -> None:
    publish_generation(*made, seed=1)
    with pytest.raises(CorruptError, match="encoder is not the one"):
        load_snapshot(made[0], Openers(lambda _: HashEncoder(seed=2)), fail)


def test_a_generation_of_another_corpus_s_rows_is_refused(tmp_path: Path, made: tuple[Store, Corpus]) -> None:
    store, corpus = made
    shorter = add_corpus(store, tmp_path / "more", {"a": "alpha"})
    shorter.number = corpus.number
    publish_generation(store, shorter)
    with pytest.raises(CorruptError, match="number of rows"):
        load_snapshot(store, OPENERS, fail)


def test_a_damaged_corpus_is_refused(made: tuple[Store, Corpus]) -> None:
    publish_generation(*made)
    damage(made[0].corpora.at(0).path / "passages.arrow")
    with pytest.raises(CorruptError, match=r"passages\.arrow"):
        load_snapshot(made[0], OPENERS, fail)


def test_unchanged_parts_are_used_again(made: tuple[Store, Corpus]) -> None:
    publish_generation(*made)
    publish_generation(*made, serve=False)
    same = HashEncoder()
    first = load_snapshot(made[0], Openers(lambda _: same), fail)
    second = load_snapshot(made[0], Openers(lambda _: same), fail, number=1, served=first)
    assert second.corpus is first.corpus
    assert second.models is first.models  # one lock and one cache for one encoder
    assert load_snapshot(made[0], OPENERS, fail, number=1, served=first).encoder is not first.encoder


class Warmed(OverlapRanker):
    """A ranker that counts how often it is asked."""

    asked = 0

    def score(self, queries: Sequence[str], passages: Sequence[str], progress: Progress = silent) -> FloatArray:
        self.asked += 1
        return super().score(queries, passages, progress)


def test_a_ranker_that_has_not_changed_is_neither_warmed_again_nor_shared_under_two_locks(
    made: tuple[Store, Corpus],
) -> None:
    publish_generation(*made, seed=1)
    publish_generation(*made, seed=2, serve=False)
    ranker = Warmed()
    kept = Openers(open_encoder, lambda _: ranker)
    first = load_snapshot(made[0], kept, fail)
    second = load_snapshot(made[0], kept, fail, number=1, served=first)
    assert second.models is not first.models and second.encoder is not first.encoder
    assert second.models.ranker is ranker and ranker.asked == 1
    assert second.models._pairs is first.models._pairs and second.models._towers is not first.models._towers
    other = load_snapshot(made[0], Openers(open_encoder, lambda _: Warmed()), fail, number=1, served=second)
    assert other.models._pairs is not second.models._pairs


def test_served_is_followed_forwards_and_backwards(made: tuple[Store, Corpus]) -> None:
    store, corpus = made
    follower = Follower(store)
    assert follower.step() is None
    publish_generation(store, corpus, 1)
    assert follower.step() == 0
    publish_generation(store, corpus, 2)
    publish_generation(store, corpus, 3)
    assert follower.step() == 2
    assert follower.step() == 2
    store.generations.point(SERVED, 1)
    assert follower.step() == 1
    assert follower.results == ["loaded"] * 3
    assert follower.said() == ["swapped"] * 3


def test_a_generation_that_cannot_be_loaded_leaves_the_one_before_it(
    made: tuple[Store, Corpus], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, corpus = made
    publish_generation(store, corpus, 1)
    follower = Follower(store)
    follower.step()
    index = publish_generation(store, corpus, 2).path / "index.faiss"
    damage(index)
    assert [follower.step() for _ in range(3)] == [0, 0, 0]
    assert "checksum" in follower.serving.problem
    assert follower.results == ["loaded", "failed"]
    assert follower.said() == ["swapped", "swap_failed"]
    damage(index)  # the altered bit turns back
    later = time.monotonic() + 3600
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert follower.step() == 1
    assert (follower.serving.problem, follower.results) == ("", ["loaded", "failed", "loaded"])


def test_a_failure_is_told_until_another_generation_is_wanted(made: tuple[Store, Corpus]) -> None:
    store, corpus = made
    publish_generation(store, corpus, 1)
    follower = Follower(store)
    follower.step()
    damage(publish_generation(store, corpus, 2).path / "index.faiss")
    assert follower.step() == 0 and follower.serving.problem
    store.generations.point(SERVED, 0)
    assert follower.step() == 0 and follower.serving.problem == ""


def test_the_first_snapshot_may_be_of_an_older_generation(made: tuple[Store, Corpus]) -> None:
    store, corpus = made
    publish_generation(store, corpus, 1)
    damage(publish_generation(store, corpus, 2).path / "index.faiss")
    follower = Follower(store)
    assert [follower.step() for _ in range(3)] == [0, 0, 0]
    assert follower.said()[:2] == ["artifact_skipped", "swapped"]
    publish_generation(store, corpus, 3)
    assert follower.step() == 2


def test_an_opener_that_fails_in_any_way_is_survived(made: tuple[Store, Corpus]) -> None:
    class OwnError(Exception):
        pass

    def opener(generation: Artifact) -> HashEncoder:
        if generation.number == 1:
            raise OwnError("out of memory")
        return open_encoder(generation)

    publish_generation(*made, seed=1)
    follower = Follower(made[0], opener)
    follower.step()
    publish_generation(*made, seed=2)
    assert follower.step() == 0
    assert follower.serving.problem == "out of memory"
    publish_generation(*made, seed=3)
    assert follower.step() == 2


def test_a_pointer_that_is_none_is_said_once(made: tuple[Store, Corpus]) -> None:
    publish_generation(*made, seed=1)
    follower = Follower(made[0])
    follower.step()
    (made[0].generations.folder / SERVED).write_text("the best one\n")
    assert [follower.step() for _ in range(3)] == [0, 0, 0]
    assert follower.results == ["loaded", "failed"]
    assert "not a pointer" in follower.serving.problem


def test_a_generation_that_was_removed_is_said(made: tuple[Store, Corpus]) -> None:
    publish_generation(*made, seed=1)
    follower = Follower(made[0])
    follower.step()
    made[0].generations.remove(publish_generation(*made, seed=2).number)
    assert follower.step() == 0
    assert "no such artifact" in follower.serving.problem
    with pytest.raises(StoreError):
        load_snapshot(made[0], OPENERS, fail, number=1)


@pytest.fixture
def threads() -> Iterator[set[threading.Thread]]:
    before = set(threading.enumerate())
    yield before
    assert set(threading.enumerate()) <= before


def test_the_thread_follows_until_it_is_stopped(made: tuple[Store, Corpus], threads: set[threading.Thread]) -> None:
    serving = Serving(made[0], OPENERS, json_log(io.StringIO()), lambda _: None, poll_seconds=0.005)
    serving.start()
    publish_generation(*made, seed=1)
    wait_for(lambda: serving.number == 0)
    serving.stop()
    publish_generation(*made, seed=2)
    time.sleep(0.05)
    assert serving.number == 0


def publish_partial(store: Store, corpus: Corpus) -> Artifact:
    """Publish generation 0 once more as one whose vectors were mapped."""
    whole = publish_generation(store, corpus, seed=1)
    with store.generations.stage(whole.parents) as draft:
        link_tree(whole.path / "vectors", draft.path / "vectors")
        (draft.path / "index.faiss").write_bytes((whole.path / "index.faiss").read_bytes())
        draft.facts.update(whole.facts, partial={"parent": whole.number, "turn": 0})
    return store.generations.at(draft.number)


def test_a_partial_generation_is_not_answered_from(made: tuple[Store, Corpus]) -> None:
    number = publish_partial(*made).number
    with pytest.raises(InputError, match="partial, to be mined from alone"):
        load_snapshot(made[0], OPENERS, fail, number=number)
    made[0].generations.point(SERVED, number)
    with pytest.raises(InputError, match="name a full generation"):
        load_snapshot(made[0], OPENERS, fail)


def test_a_partial_generation_does_not_stand_in_for_a_damaged_one(made: tuple[Store, Corpus]) -> None:
    publish_partial(*made)
    damage(publish_generation(*made, seed=2).path / "index.faiss")
    warnings: list[str] = []
    assert load_snapshot(made[0], OPENERS, warnings.append).generation.number == 0
    assert len(warnings) == 1
