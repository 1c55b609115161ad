import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from indexer.dev_record import QUERIES, RERANKED, DevRecord
from indexer.promotion import (
    LEDGER,
    PREVIOUS,
    compare,
    compare_reranked,
    intact_served,
    ledger,
    pin_served,
    promote,
    promote_if_good,
    rollback,
    served_before,
)
from retriever.artifacts import BEST, SERVED, Artifact
from retriever.data import Corpus
from retriever.errors import CorruptError, InputError
from retriever.store import Store


def publish(store: Store, ndcg: float) -> Artifact:
    with store.generations.stage(parents={}) as draft:
        draft.facts.update(step=0, weights_sha256="w0", dev={"nDCG@10": ndcg}, seconds={"encode": 1.0})
    return store.generations.at(draft.number)


def pointed(store: Store) -> tuple[int | None, int | None]:
    return store.generations.pointed(SERVED), store.generations.pointed(BEST)


def events(store: Store) -> list[dict[str, object]]:
    return [json.loads(line) for line in (store.root / "events.jsonl").read_text().splitlines()]


def test_pointers_follow_the_gate_and_the_decision_is_logged(tiny: tuple[Store, Corpus]) -> None:
    store, _ = tiny
    moves = [(0.50, (0, 0)), (0.60, (1, 1)), (0.595, (2, 1)), (0.40, (2, 1)), (0.61, (4, 4))]
    for ndcg, expected in moves:
        generation = publish(store, ndcg)
        verdict = promote_if_good(store, generation)
        assert pointed(store) == expected
        assert (verdict.served, verdict.best) == tuple(number == generation.number for number in expected)
    logged = events(store)
    assert [event["number"] for event in logged] == [0, 1, 2, 3, 4]
    assert [event["served"] for event in logged] == [True, True, True, False, True]
    assert logged[3]["event"] == "generation_published" and "0.4000" in str(logged[3]["reason"])
    assert logged[3]["weights_sha256"] == "w0"
    assert logged[3]["dev"] == {"nDCG@10": 0.40} and logged[3]["seconds"] == {"encode": 1.0}


def test_judging_again_neither_undoes_a_rollback_nor_logs_twice(tiny: tuple[Store, Corpus]) -> None:
    store, _ = tiny
    generations = [publish(store, ndcg) for ndcg in (0.5, 0.6)]
    for generation in generations:
        promote_if_good(store, generation)
    store.generations.point(SERVED, 0)
    for generation in reversed(generations):
        verdict = promote_if_good(store, generation)
        assert verdict.served == (generation.number == 0) and verdict.reason == "judged before"
    assert pointed(store) == (0, 1)
    assert len(events(store)) == 2


@pytest.mark.parametrize("survivors", [0, 1, 2, 3])
def test_a_promotion_that_was_killed_is_completed(
    tiny: tuple[Store, Corpus], monkeypatch: pytest.MonkeyPatch, survivors: int
) -> None:
    store, _ = tiny
    promote_if_good(store, publish(store, 0.5))
    newest, point, moved = publish(store, 0.6), store.generations.point, list[str]()

    def killed(pointer: str, number: int) -> None:
        if len(moved) == survivors:
            raise KeyboardInterrupt
        point(pointer, number)
        moved.append(pointer)

    monkeypatch.setattr(store.generations, "point", killed)
    with pytest.raises(KeyboardInterrupt):
        promote_if_good(store, newest)
    monkeypatch.undo()
    promote_if_good(store, newest)
    assert pointed(store) == (1, 1)


def test_a_broken_served_generation_gives_way(tiny: tuple[Store, Corpus]) -> None:
    store, _ = tiny
    promote_if_good(store, publish(store, 0.9))
    newest = publish(store, 0.1)
    (store.generations.path(0) / "manifest.json").write_text("torn")
    assert promote_if_good(store, newest).served
    assert pointed(store) == (1, 1)


def test_a_refused_generation_is_served_by_force_alone_and_the_ledger_says_so(tiny: tuple[Store, Corpus]) -> None:
    store, _ = tiny
    for ndcg in (0.6, 0.4):
        promote_if_good(store, publish(store, ndcg))
    with pytest.raises(InputError, match=r"generation 1 is refused by the gate: dev nDCG@10 0\.4000"):
        promote(store)
    assert pointed(store) == (0, 0)
    line = promote(store, 1, force=True)
    assert pointed(store) == (1, 0) and store.generations.pointed(PREVIOUS) == 0
    assert (line["by"], line["from"], line["to"]) == ("force", 0, 1) and not line["checks"][-1]["passed"]
    assert ledger(store)[-1] == line
    assert promote(store, 0)["by"] == "promote"


def test_a_rollback_goes_back_one_by_one(tiny: tuple[Store, Corpus]) -> None:
    store, _ = tiny
    for ndcg in (0.5, 0.6, 0.7):
        promote_if_good(store, publish(store, ndcg))
    assert [rollback(store)["to"] for _ in range(2)] == [1, 0]
    with pytest.raises(InputError, match="no intact generation was served before"):
        rollback(store)
    assert promote(store, 2)["from"] == 0
    assert rollback(store)["to"] == 0
    pin_served(store, 1)
    assert [line["by"] for line in ledger(store)] == [*["gate"] * 3, *["rollback"] * 2, "promote", "rollback", "pin"]
    assert rollback(store)["to"] == 0


def test_a_rollback_passes_over_what_is_gone_or_damaged(tiny: tuple[Store, Corpus]) -> None:
    store, _ = tiny
    for ndcg in (0.5, 0.6, 0.7, 0.8):
        promote_if_good(store, publish(store, ndcg))
    store.generations.remove(1)
    (store.generations.path(2) / "manifest.json").write_text("torn")
    assert rollback(store)["to"] == 0


def test_a_damaged_or_partial_generation_is_not_promoted_even_by_force(tiny: tuple[Store, Corpus]) -> None:
    store, _ = tiny
    with pytest.raises(InputError, match="no generation yet"):
        promote(store)
    with store.generations.stage(parents={}) as draft:
        (draft.path / "index.faiss").write_text("whole")
        draft.facts.update(step=0, dev={})
    (store.generations.path(0) / "index.faiss").write_text("other")
    with pytest.raises(CorruptError):
        promote(store, force=True)
    with store.generations.stage(parents={}) as draft:
        draft.facts.update(step=0, dev={}, partial={"parent": 0})
    with pytest.raises(InputError, match="partial"):
        promote(store, force=True)
    assert store.generations.pointed(SERVED) is None


def test_what_was_served_before_is_kept_for_a_rollback(tiny: tuple[Store, Corpus]) -> None:
    store, _ = tiny
    for ndcg in (0.5, 0.6, 0.3, 0.2):
        promote_if_good(store, publish(store, ndcg))
    store.retain("generations", keep=1, grace_seconds=-1)
    assert store.generations.numbers() == [0, 1, 3]
    assert rollback(store)["to"] == 0


def record(*names: str) -> DevRecord:
    figures = np.full(len(names), 0.5, np.float32)
    return DevRecord("dev", names, [f"text of {name}" for name in names], [{"p0": 1} for _ in names], figures)


def test_slices_are_of_the_queries_that_both_have_by_the_metadata_of_the_new_one() -> None:
    new = replace(record("a", "b", "c"), metadata=['{"lang": "de"}', '{"lang": "fi"}', '{"lang": "de"}'])
    pairs = compare(new, record("c", "b"), ["lang"])
    assert [(one.name, one.places.tolist()) for one in pairs.slices] == [("lang=de", [1]), ("lang=fi", [0])]
    assert list(compare(new, new).slices) == []


def test_a_record_keeps_metadata_and_refuses_too_few(tmp_path: Path) -> None:
    kept = replace(record("a", "b"), metadata=["", '{"lang": "de"}'])
    kept.write(tmp_path)
    assert DevRecord.read(tmp_path).metadata == kept.metadata
    queries = json.loads((tmp_path / QUERIES).read_text())
    (tmp_path / QUERIES).write_text(json.dumps({**queries, "metadata": [""]}))
    with pytest.raises(CorruptError, match="differ in their number"):
        DevRecord.read(tmp_path)


def test_reranked_figures_are_compared_where_both_have_one() -> None:
    nan = np.float32("nan")
    new = replace(record("a", "b", "c"), reranked=np.array([0.1, nan, 0.3], np.float32))
    old = replace(record("c", "b", "a"), reranked=np.array([nan, 0.8, 0.9], np.float32))
    assert compare_reranked(record("a"), new) == (None, None)
    own, served = compare_reranked(new, record("a", "b", "c"))
    assert own is not None and served is None
    np.testing.assert_allclose(own.now, [0.1, 0.3])
    np.testing.assert_allclose(own.before, [0.5, 0.5])
    served = compare_reranked(new, old).served
    assert served is not None
    np.testing.assert_allclose([served.now, served.before], [[0.1], [0.9]])


def test_a_record_keeps_its_reranked_figures_and_refuses_too_few(tmp_path: Path) -> None:
    kept = replace(record("a", "b"), reranked=np.array([0.1, np.nan], np.float32))
    for folder, written in ((tmp_path / "with", kept), (tmp_path / "without", record("a", "b"))):
        folder.mkdir()
        written.write(folder)
    assert DevRecord.read(tmp_path / "without").reranked is None
    np.testing.assert_array_equal(DevRecord.read(tmp_path / "with").reranked, kept.reranked)
    np.save(tmp_path / "with" / RERANKED, np.zeros(1, np.float32))
    with pytest.raises(CorruptError, match="differ in their number"):
        DevRecord.read(tmp_path / "with")


def test_what_was_served_alone_stands_in_for_a_damaged_generation(tiny: tuple[Store, Corpus]) -> None:
    store, _ = tiny
    for ndcg in (0.5, 0.6, 0.4, 0.7, 0.8):  # 2 is refused
        promote_if_good(store, publish(store, ndcg))
    assert rollback(store)["to"] == 3 and promote(store, 4)["to"] == 4
    rollback(store), promote(store, 4)
    warnings = list[str]()
    for broken in (4, 3):
        (store.generations.path(broken) / "manifest.json").write_text("torn")
    found = intact_served(store, warnings.append)
    assert found is not None and found.number == 1, "2 is intact, and the gate refused it"
    assert len(warnings) == 2


def test_what_was_rolled_back_stands_in_for_nothing(tiny: tuple[Store, Corpus]) -> None:
    """Neither once the generation served after it is torn, nor once the next one is, which followed a torn one."""
    store, _ = tiny
    for ndcg in (0.5, 0.6):
        promote_if_good(store, publish(store, ndcg))
    rollback(store)
    for torn in (2, 3):
        promote_if_good(store, publish(store, 0.5 + torn / 10))
        assert store.generations.pointed(SERVED) == torn
        (store.generations.path(torn) / "manifest.json").write_text("torn")
        found = intact_served(store, lambda _: None)
        assert found is not None and found.number == 0
    assert ledger(store)[-1]["from"] == 2 and served_before(store) == [2, 0]
    assert rollback(store)["to"] == 0


def test_an_intact_generation_needs_no_ledger(tiny: tuple[Store, Corpus]) -> None:
    store, _ = tiny
    promote_if_good(store, publish(store, 0.5))
    (store.root / LEDGER).write_text("no line of JSON\n{}\n")
    found = intact_served(store, pytest.fail)
    assert found is not None and found.number == 0


def test_where_nothing_else_was_served_nothing_stands_in(tiny: tuple[Store, Corpus]) -> None:
    store, _ = tiny
    publish(store, 0.4)
    promote_if_good(store, publish(store, 0.5))
    (store.generations.path(1) / "manifest.json").write_text("torn")
    with pytest.raises(CorruptError, match="no intact artifact up to 1"):
        intact_served(store, lambda _: None)
