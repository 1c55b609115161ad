import json

import pytest

from indexer.promotion import promote_if_good
from retriever.artifacts import BEST, SERVED, Artifact
from retriever.data import Corpus
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


@pytest.mark.parametrize("survivors", [0, 1, 2])
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
