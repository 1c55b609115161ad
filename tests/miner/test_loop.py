import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import pytest

import retriever.artifacts
from indexer.promotion import JUDGED, promote_if_good
from miner.loop import Adopt, Retention, refresh
from retriever.artifacts import CURRENT, SERVED, Artifact, Series
from retriever.errors import BusyError, CorruptError
from retriever.store import Store

KEEP_ALL = Retention(generations=100, negatives=100)


class Killed(BaseException):
    """The process ended here."""


def mark(store: Store, step: int, **facts: Any) -> int:
    """Publish a checkpoint, as the trainer does, and return its number."""
    with store.checkpoints.stage({}) as draft:
        (draft.path / "weights").write_text(f"weights of step {step}")
        draft.facts.update(step=step, **facts)
    return draft.number


def spoil(artifact: Artifact) -> None:
    """Change one byte of the artifact's file without changing its length."""
    (path,) = (path for path in artifact.path.iterdir() if path.name != "manifest.json")
    path.write_bytes(b"#" + path.read_bytes()[1:])


@dataclass
class Refresher:
    """A refresher whose makers write a line each, and what it did."""

    store: Store
    adopt: Adopt = "scheduled"
    retention: Retention = field(default_factory=lambda: Retention(grace_seconds=0))
    stop: Event = field(default_factory=Event)
    built: list[int] = field(default_factory=list)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    while_building: Callable[[int], object] = lambda step: None
    stop_after: str = ""

    def build(self, checkpoint: Artifact) -> Artifact:
        step = checkpoint.facts["step"]
        self.while_building(step)
        with self.store.generations.stage({"checkpoint": checkpoint.number, "corpus": 0}) as draft:
            (draft.path / "index.faiss").write_text(f"index of step {step}")
            draft.facts.update(step=step, final=checkpoint.facts.get("final", False), dev={}, seconds={})
            draft.facts.update(passage_fingerprint=f"fingerprint-{step}", weights_sha256=f"weights-{step}")
        (self.store.embeddings / f"fingerprint-{step}").mkdir(exist_ok=True)
        self.built.append(step)
        generation = self.store.generations.at(draft.number)
        promote_if_good(self.store, generation)
        return generation

    def publish(self, generation: Artifact) -> Artifact:
        with self.store.negatives.stage({**generation.parents, "generation": generation.number}) as draft:
            (draft.path / "passages.npy").write_text(f"negatives of step {generation.facts['step']}")
            draft.facts.update(step=generation.facts["step"], final=generation.facts["final"])
        return self.store.negatives.at(draft.number)

    def report(self, event: str, **fields: Any) -> None:
        self.events.append((event, fields))
        if event == self.stop_after:
            self.stop.set()

    def run(self) -> "Refresher":
        refresh(self.store, self.build, self.publish, self.stop, self.adopt, self.report, self.retention)
        return self

    def told(self, event: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.events if name == event]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", create=True)


def lineage(series: Series) -> list[tuple[int, int, dict[str, int]]]:
    """Return number, step and parents of all artifacts of a kind."""
    found = [series.at(number) for number in series.numbers()]
    return [(artifact.number, artifact.facts["step"], dict(artifact.parents)) for artifact in found]


def run_of_four(store: Store) -> None:
    mark(store, 0, refresh=True)
    mark(store, 50)
    mark(store, 100, refresh=True)
    mark(store, 200, refresh=True)
    mark(store, 300, final=True)


def test_scheduled_takes_every_marked_checkpoint_in_order_and_drains(store: Store) -> None:
    run_of_four(store)
    refresher = Refresher(store).run()
    assert refresher.built == [0, 100, 200, 300]
    assert lineage(store.negatives) == [
        (number, step, {"checkpoint": checkpoint, "corpus": 0, "generation": number})
        for number, (step, checkpoint) in enumerate([(0, 0), (100, 2), (200, 3), (300, 4)])
    ]
    assert refresher.events[-1] == ("drained", {"checkpoint": 4})


def test_scheduled_skips_none_that_is_marked_while_it_builds(store: Store) -> None:
    mark(store, 0, refresh=True)
    later = {0: [100, 200], 100: [300]}

    def train_on(step: int) -> None:
        for marked in later.get(step, []):
            mark(store, marked, refresh=True, final=marked == 300)

    assert Refresher(store, while_building=train_on).run().built == [0, 100, 200, 300]


def test_ready_takes_the_newest_and_says_what_it_skips(store: Store) -> None:
    run_of_four(store)
    refresher = Refresher(store, "ready").run()
    assert refresher.built == [300]
    assert refresher.told("skipped") == [{"checkpoints": [0, 2, 3]}]


def test_ready_passes_over_a_newer_checkpoint_that_is_not_marked(store: Store) -> None:
    mark(store, 0, refresh=True)
    mark(store, 50)
    assert Refresher(store, "ready", stop_after="negatives_published").run().built == [0]


def test_ready_takes_up_what_came_while_it_built(store: Store) -> None:
    mark(store, 0, refresh=True)

    def train_on(step: int) -> None:
        if step == 0:
            mark(store, 100, refresh=True)
            mark(store, 200, refresh=True, final=True)

    assert Refresher(store, "ready", while_building=train_on).run().built == [0, 200]


@pytest.mark.parametrize("adopt", ["ready", "scheduled"])
def test_it_waits_for_the_first_checkpoint_and_stops_when_told(store: Store, adopt: Adopt) -> None:
    refresher = Refresher(store, adopt)
    thread = threading.Thread(target=refresher.run)
    thread.start()
    mark(store, 0)
    mark(store, 100, refresh=True)
    while thread.is_alive() and not refresher.told("negatives_published"):
        thread.join(0.01)
    refresher.stop.set()
    thread.join(10)
    assert not thread.is_alive() and refresher.built == [100]


def test_a_restarted_refresher_continues(store: Store) -> None:
    run_of_four(store)
    assert Refresher(store, stop_after="negatives_published").run().built == [0]
    assert Refresher(store).run().built == [100, 200, 300]
    again = Refresher(store).run()
    assert again.built == [] and again.events == [("drained", {"checkpoint": 4})]


def test_a_run_that_goes_on_after_its_final_checkpoint_is_followed(store: Store) -> None:
    run_of_four(store)
    Refresher(store).run()
    mark(store, 350)
    mark(store, 400, refresh=True)
    assert Refresher(store, stop_after="negatives_published").run().built == [400]


def test_a_final_checkpoint_that_others_follow_does_not_end_the_loop(store: Store) -> None:
    run_of_four(store)
    mark(store, 350)
    mark(store, 400, refresh=True, final=True)
    assert Refresher(store).run().built == [0, 100, 200, 300, 400]


def strike(monkeypatch: pytest.MonkeyPatch, store: Store, fatal: int, *, done: bool) -> int:
    """Run a refresher that is killed at its filesystem step ``fatal``, before or after it is ``done``.

    Returns the number of steps that it took.
    """
    steps = 0

    def fragile(operation: Callable[..., None]) -> Callable[..., None]:
        def step(*arguments: Any) -> None:
            nonlocal steps
            steps += 1
            if steps == fatal and not done:
                raise Killed
            operation(*arguments)
            if steps == fatal:
                raise Killed

        return step

    with monkeypatch.context() as patch, suppress(Killed):
        for name in ("publish_folder", "write_atomic"):
            patch.setattr(retriever.artifacts, name, fragile(getattr(retriever.artifacts, name)))
        Refresher(store, retention=KEEP_ALL).run()
    return steps


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_a_kill_at_any_step_changes_nothing_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    calm = Store(tmp_path / "calm", create=True)
    run_of_four(calm)
    steps = strike(monkeypatch, calm, -1, done=done)
    # Four generations of a folder and the pointers CURRENT, SERVED and JUDGED, four sets of a folder and CURRENT.
    assert steps >= 24
    for fatal in range(1, steps + 1):
        struck = Store(tmp_path / f"struck-{fatal}", create=True)
        run_of_four(struck)
        assert strike(monkeypatch, struck, fatal, done=done) == fatal
        Refresher(struck, retention=KEEP_ALL).run()
        for kind in ("generations", "negatives"):
            assert lineage(struck.series(kind)) == lineage(calm.series(kind)), fatal
            assert struck.series(kind).pointers() == calm.series(kind).pointers(), fatal


def test_a_generation_without_its_negative_set_is_used_and_passes_the_gate(store: Store) -> None:
    number = mark(store, 0, refresh=True, final=True)
    refresher = Refresher(store)
    refresher.build(store.checkpoints.at(number))
    for pointer in (SERVED, JUDGED):  # as if the kill had come before the gate
        (store.generations.folder / pointer).unlink()
    refresher.built.clear()
    refresher.run()
    assert refresher.built == []
    assert refresher.told("generation_reused") == [{"checkpoint": 0, "step": 0, "generation": 0}]
    assert store.generations.pointed(SERVED) == 0
    assert len(lineage(store.negatives)) == 1


def test_a_corrupt_generation_is_built_again(store: Store) -> None:
    number = mark(store, 0, refresh=True, final=True)
    refresher = Refresher(store)
    spoil(refresher.build(store.checkpoints.at(number)))
    refresher.run()
    assert refresher.built == [0, 0]
    assert [fields["kind"] for fields in refresher.told("corrupt")] == ["generations"]
    assert lineage(store.negatives)[0][2]["generation"] == 1


def test_a_corrupt_negative_set_is_mined_again(store: Store) -> None:
    run_of_four(store)
    Refresher(store).run()
    spoil(store.negatives.at(3))
    again = Refresher(store).run()
    assert again.built == []  # its generation is intact
    assert lineage(store.negatives)[-1] == (4, 300, {"checkpoint": 4, "corpus": 0, "generation": 3})
    assert store.negatives.pointed(CURRENT) == 4


def test_scheduled_ends_at_a_corrupt_checkpoint(store: Store) -> None:
    run_of_four(store)
    spoil(store.checkpoints.at(2))
    refresher = Refresher(store)
    with pytest.raises(CorruptError, match="checksum differs from the manifest of checkpoints 2"):
        refresher.run()
    assert refresher.built == [0]


def test_scheduled_ends_at_a_checkpoint_whose_mark_is_unreadable(store: Store) -> None:
    run_of_four(store)
    (store.checkpoints.path(1) / "manifest.json").write_text("{")
    with pytest.raises(CorruptError, match="not a manifest"):
        Refresher(store).run()


def test_ready_reports_corrupt_checkpoints_and_uses_the_one_before(store: Store) -> None:
    run_of_four(store)
    spoil(store.checkpoints.at(4))
    (store.checkpoints.path(3) / "manifest.json").write_text("{")
    refresher = Refresher(store, "ready").run()
    assert refresher.built == [100]
    assert [fields["number"] for fields in refresher.told("corrupt")] == [3, 4]
    assert refresher.told("drained")  # the corrupt one was the final one: there is nothing to wait for


def test_ready_goes_on_when_no_marked_checkpoint_is_intact(store: Store) -> None:
    spoil(store.checkpoints.at(mark(store, 0, refresh=True)))
    refresher = Refresher(store, "ready")
    thread = threading.Thread(target=refresher.run)
    thread.start()
    while thread.is_alive() and not refresher.told("corrupt"):
        thread.join(0.01)
    mark(store, 100, refresh=True, final=True)
    thread.join(10)
    assert not thread.is_alive() and refresher.built == [100]
    assert len(refresher.told("corrupt")) == 1  # said once


def test_checkpoints_that_the_trainer_removed_are_passed_over(store: Store) -> None:
    run_of_four(store)
    store.checkpoints.remove(1)
    assert Refresher(store).run().built == [0, 100, 200, 300]


def test_an_imported_set_is_not_taken_for_work_done_or_undone(store: Store) -> None:
    run_of_four(store)
    Refresher(store, stop_after="negatives_published").run()
    with store.negatives.stage({"corpus": 0}) as draft:
        (draft.path / "passages.npy").write_text("from elsewhere")
    assert Refresher(store).run().built == [100, 200, 300]


@pytest.mark.parametrize("kind", ["generations", "negatives"])
def test_a_second_refresher_is_refused(store: Store, kind: str) -> None:
    mark(store, 0, refresh=True)
    other = Store(store.root)
    with other.series(kind).writer(), pytest.raises(BusyError, match=f"already writing {kind}"):
        Refresher(store).run()


def test_old_generations_go_with_their_embeddings(store: Store) -> None:
    for step in range(6):
        mark(store, step, refresh=True, final=step == 5)
    refresher = Refresher(store, retention=Retention(generations=2, negatives=2, grace_seconds=0))
    refresher.run()
    kept = store.generations.numbers()
    assert kept[-2:] == [4, 5] and set(kept) <= {0, 4, 5} | set(store.generations.pointers().values())
    assert sorted(path.name for path in store.embeddings.iterdir()) == [f"fingerprint-{n}" for n in kept]
    assert {1, 2, 3} <= {n for fields in refresher.told("removed") for n in fields["numbers"]} | set(kept)


def test_what_is_young_stays(store: Store) -> None:
    for step in range(6):
        mark(store, step, refresh=True, final=step == 5)
    Refresher(store, retention=Retention(1, 1, grace_seconds=3600)).run()
    assert store.generations.numbers() == store.negatives.numbers() == list(range(6))


def test_sets_that_a_resumed_trainer_needs_stay(store: Store) -> None:
    sets = Retention(generations=1, negatives=1, grace_seconds=0)
    for step in range(0, 500, 100):
        mark(store, step, refresh=True, final=step == 400)
    Refresher(store, retention=sets).run()
    assert store.negatives.numbers() == [0, 1, 2, 3, 4]  # nothing adopted: the trainer may be waiting for the first
    for step, number in [(150, 0), (250, 1), (350, 2), (950, 4)]:
        store.record_adoption(step, number, "")
    mark(store, 600, refresh=True, final=True)
    Refresher(store, retention=sets).run()
    # At step 600 set 2 was in use; set 4 is adopted later, so a trainer that resumes at 600 needs 2 and all after it.
    assert store.negatives.numbers() == [2, 3, 4, 5]
