"""Scores of a teacher for a set's pairs: which are made, that none is made twice, and what a kill or a flip costs."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from miner import teacher as module
from miner.mining import MiningConfig, MiningTask
from miner.teacher import PoolTeacher, drop_unused_scores, score_pools
from retriever.errors import BusyError, StoreError
from retriever.ingest import load_query_set
from retriever.negatives import NegativeSet, Verdict, create_negative_set
from retriever.protocols import FloatArray, Progress, silent
from retriever.store import Store
from retriever.teacher_scores import TeacherScores, open_teacher_scores
from tests.stand_ins import OverlapRanker, tiny_store, write_tiny_data

DEPTH = 8


class Counting(OverlapRanker):
    """Notes the pairs that it is asked for; ends the process, as it were, after ``calls`` calls."""

    def __init__(self, calls: int | None = None) -> None:
        super().__init__()
        self.asked: list[tuple[str, str]] = []
        self._left = calls

    def score(self, queries: Sequence[str], passages: Sequence[str], progress: Progress = silent) -> FloatArray:
        """Return float32 [n]."""
        if self._left == 0:
            raise KeyboardInterrupt
        self._left = None if self._left is None else self._left - 1
        self.asked.extend(zip(queries, passages, strict=True))
        return super().score(queries, passages, progress)


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MiningTask:
    monkeypatch.setattr(module, "BLOCK_QUERIES", 6)
    data = write_tiny_data(tmp_path / "data")
    _, corpus = tiny_store(tmp_path / "store", data)
    return MiningTask(corpus, load_query_set(data, "train", corpus, warn=complain), MiningConfig(depth=DEPTH), seed=1)


def write_pool(folder: Path, task: MiningTask, shift: int = 0) -> NegativeSet:
    """Eight candidates a query from row ``shift`` on, of which the fourth is filtered and the last is a pad."""
    folder.mkdir()
    queries = len(task.queries)
    pool = create_negative_set(folder, queries, DEPTH, 2)
    pool.passages[:] = (np.arange(queries)[:, None] * 2 + shift + np.arange(DEPTH)) % len(task.corpus)
    pool.verdicts[:] = Verdict.ELIGIBLE
    pool.verdicts[:, 3] = Verdict.FILTERED
    pool.verdicts[:, 5] = Verdict.JUDGED_IRRELEVANT
    pool.passages[:, -1] = -1
    pool.positives[:, 0] = np.arange(queries)
    pool.flush()
    return pool


def scored(
    folder: Path, pool: NegativeSet, task: MiningTask, ranker: OverlapRanker, **keys: Any
) -> tuple[TeacherScores, dict[str, Any]]:
    teacher = PoolTeacher(ranker, {"name": "overlap"}, **keys)
    facts = score_pools(folder, pool, task, teacher, folder.parent / "cache", complain)
    found = open_teacher_scores(folder, pool)
    assert found is not None
    return found, facts


def complain(message: str) -> None:
    raise AssertionError(message)


def text_pair(task: MiningTask, query: int, passage: int) -> tuple[str, str]:
    return task.queries.texts[query], task.corpus.text(passage)


def test_positives_and_what_may_be_drawn_are_scored_and_nothing_else(tmp_path: Path, task: MiningTask) -> None:
    pool, ranker = write_pool(tmp_path / "set", task), Counting()
    found, facts = scored(tmp_path / "set", pool, task, ranker)
    for query in range(20):
        for column in range(DEPTH):
            score = found.candidates[query, column]
            row = int(pool.passages[query, column])
            drawable = row >= 0 and column != 3
            if not drawable and row != query:
                assert np.isnan(score)
                continue
            queries, passages = ([text] for text in text_pair(task, query, row))
            assert score == OverlapRanker().score(queries, passages)[0]
        assert np.isfinite(found.positives[query, 0]) and np.isnan(found.positives[query, 1])
    assert len(set(ranker.asked)) == len(ranker.asked) == facts["scored"] == facts["pairs"]
    assert facts["reused"] == 0 and facts["fingerprint"] == "overlap" and facts["name"] == "overlap"


def test_a_depth_takes_the_best_that_may_be_drawn(tmp_path: Path, task: MiningTask) -> None:
    pool = write_pool(tmp_path / "set", task)
    found, facts = scored(tmp_path / "set", pool, task, OverlapRanker(), depth=4)
    has = np.isfinite(found.candidates[10])  # whose positive is none of its candidates
    assert has.tolist() == [True, True, True, False, True, False, False, False]
    assert facts["depth"] == 4


def test_a_later_set_has_only_its_new_pairs_scored(tmp_path: Path, task: MiningTask) -> None:
    first, second = write_pool(tmp_path / "one", task), write_pool(tmp_path / "two", task, shift=2)
    ranker = Counting()
    scored(tmp_path / "one", first, task, ranker)
    before = set(ranker.asked)
    ranker.asked.clear()
    found, facts = scored(tmp_path / "two", second, task, ranker)
    assert not before & set(ranker.asked) and facts["scored"] == len(ranker.asked) > 0
    assert facts["reused"] > 0 and facts["scored"] + facts["reused"] == facts["pairs"]
    whole, _ = scored(tmp_path / "two", second, task, OverlapRanker())
    np.testing.assert_array_equal(found.candidates, whole.candidates)
    ranker.asked.clear()
    again, facts = scored(tmp_path / "one", first, task, ranker)
    assert ranker.asked == [] and facts["scored"] == 0, "a set before the last is remembered, too"
    assert np.isfinite(again.positives[:, 0]).all()


def test_another_teacher_scores_for_itself(tmp_path: Path, task: MiningTask) -> None:
    pool, other = write_pool(tmp_path / "set", task), Counting()
    scored(tmp_path / "set", pool, task, OverlapRanker())
    other.fingerprint = "another"
    assert scored(tmp_path / "set", pool, task, other)[1]["scored"] == len(other.asked) > 100


def test_a_kill_costs_a_block_of_queries_at_most(tmp_path: Path, task: MiningTask) -> None:
    pool = write_pool(tmp_path / "set", task)
    whole, facts = scored(tmp_path / "set", pool, task, OverlapRanker())
    broken, going_on = Counting(calls=2), Counting()
    (tmp_path / "elsewhere").mkdir()
    pool = write_pool(tmp_path / "elsewhere/set", task)
    with pytest.raises(KeyboardInterrupt):
        scored(tmp_path / "elsewhere/set", pool, task, broken)
    found, resumed = scored(tmp_path / "elsewhere/set", pool, task, going_on)
    assert len(broken.asked) + len(going_on.asked) == facts["scored"]
    assert resumed["reused"] == len(broken.asked) > 0 and not {*broken.asked} & {*going_on.asked}
    np.testing.assert_array_equal(found.candidates, whole.candidates)


def test_an_altered_block_is_said_and_scored_anew(tmp_path: Path, task: MiningTask) -> None:
    pool = write_pool(tmp_path / "set", task)
    whole, _ = scored(tmp_path / "set", pool, task, OverlapRanker())
    path = min((tmp_path / "cache").rglob("00001.safetensors"))
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    said: list[str] = []
    ranker = Counting()
    score_pools(tmp_path / "set", pool, task, PoolTeacher(ranker), tmp_path / "cache", said.append)
    assert len(said) == 1 and "00001.safetensors: altered since it was written; its pairs are scored anew" in said[0]
    assert 0 < len(ranker.asked) <= 6 * DEPTH
    found = open_teacher_scores(tmp_path / "set", pool)
    assert found is not None
    np.testing.assert_array_equal(found.candidates, whole.candidates)
    path.write_bytes(b"no safetensors")
    score_pools(tmp_path / "set", pool, task, PoolTeacher(OverlapRanker()), tmp_path / "cache", said.append)
    assert len(said) == 2


def test_progress_counts_the_pairs_that_are_scored(tmp_path: Path, task: MiningTask) -> None:
    pool, told = write_pool(tmp_path / "set", task), list[tuple[int, int]]()
    _, facts = scored(tmp_path / "set", pool, task, OverlapRanker(), progress=lambda *counts: told.append(counts))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert {total for _, total in told} == {facts["scored"]} and told[-1][0] == facts["scored"]


class Broken(OverlapRanker):
    """Has no number for one pair."""

    def score_tokens(self, pairs: Sequence[tuple[list[str], list[str]]]) -> FloatArray:
        """Return float32 [n]."""
        scores = super().score_tokens(pairs)
        scores[4] = np.inf
        return scores


def test_a_score_that_is_no_number_is_an_error_that_names_the_pair(tmp_path: Path, task: MiningTask) -> None:
    pool = write_pool(tmp_path / "set", task)
    with pytest.raises(StoreError, match=r"its score of passage 'p5' for query 'q0' is inf"):
        scored(tmp_path / "set", pool, task, Broken())


def test_other_texts_share_no_scores_and_other_judgements_do(tmp_path: Path, task: MiningTask) -> None:
    pool = write_pool(tmp_path / "set", task)
    _, facts = scored(tmp_path / "set", pool, task, OverlapRanker())
    queries = task.queries
    asked = replace(task, queries=replace(queries, texts=[f"{text} bula" for text in queries.texts]))
    assert scored(tmp_path / "set", pool, asked, OverlapRanker())[1]["reused"] == 0
    judged = replace(task, queries=replace(queries, judgements=[{**one, 50: 0} for one in queries.judgements]))
    assert scored(tmp_path / "set", pool, judged, OverlapRanker())[1]["reused"] == facts["pairs"]


def publish_scored(store: Store, task: MiningTask, teacher: str | None) -> int:
    """Publish a set, scored by a ranker of the name ``teacher``, and return its number."""
    with store.negatives.stage({"corpus": 0}) as draft:
        (draft.path / "arrays").mkdir()
        pool = write_pool(draft.path / "arrays/set", task)
        draft.facts["step"] = 0
        if teacher is not None:
            ranker = OverlapRanker()
            ranker.fingerprint = teacher
            facts = score_pools(draft.path / "arrays/set", pool, task, PoolTeacher(ranker), store.teacher, complain)
            draft.facts["teacher"] = facts
    return draft.number


def caches(store: Store) -> dict[str, str]:
    """Return the folder of each teacher that a set of the store names, whether it is there or not."""
    facts = [store.negatives.at(number).facts.get("teacher") for number in store.negatives.numbers()]
    return {one["fingerprint"]: one["cache"] for one in facts if one is not None}


def present(store: Store) -> set[str]:
    return {path.name for path in store.teacher.iterdir()}


def test_scores_go_with_the_last_set_that_was_made_with_them(tmp_path: Path, task: MiningTask) -> None:
    store = Store(tmp_path / "store")
    assert drop_unused_scores(store) == [], "there is no such folder"
    sets = [publish_scored(store, task, name) for name in ("old", "new", "old", None, "new")]
    names = caches(store)
    assert drop_unused_scores(store) == [] and present(store) == {*names.values()}
    store.negatives.remove(sets[0])
    assert drop_unused_scores(store) == []
    store.negatives.remove(sets[2])
    assert drop_unused_scores(store) == [names["old"]] and present(store) == {names["new"]}
    ranker = Counting()
    ranker.fingerprint = "new"
    pool = write_pool(tmp_path / "again", task)
    facts = score_pools(tmp_path / "again", pool, task, PoolTeacher(ranker), store.teacher, complain)
    assert ranker.asked == [] and facts["cache"] == names["new"]


def test_a_removal_that_was_killed_leaves_nothing_half_and_is_finished_later(
    tmp_path: Path, task: MiningTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store")
    number, _ = publish_scored(store, task, "old"), publish_scored(store, task, "new")
    names = caches(store)
    store.negatives.remove(number)

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        drop_unused_scores(store)
    monkeypatch.undo()
    assert names["old"] not in present(store), "it is never seen in part under its own name"
    (store.teacher / names["new"] / ".tmp-half-written").write_bytes(b"torn")
    assert len(present(store)) == 2
    assert drop_unused_scores(store) == [] and present(store) == {names["new"]}
    assert not list((store.teacher / names["new"]).glob(".tmp-*"))


def test_no_scores_go_while_a_set_is_torn_or_another_process_mines(tmp_path: Path, task: MiningTask) -> None:
    store = Store(tmp_path / "store")
    number, torn = publish_scored(store, task, "old"), publish_scored(store, task, "new")
    names = caches(store)
    store.negatives.remove(number)
    manifest = store.negatives.path(torn) / "manifest.json"
    whole = manifest.read_text()
    manifest.write_text("torn")
    assert drop_unused_scores(store) == [] and present(store) == {*names.values()}
    manifest.write_text(whole)
    with store.negatives.writer(), pytest.raises(BusyError):
        drop_unused_scores(Store(store.root))
    assert present(store) == {*names.values()}
    assert drop_unused_scores(store) == [names["old"]]
