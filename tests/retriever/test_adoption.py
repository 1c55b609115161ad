import json
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import pytest

import retriever.adoption
from retriever.adoption import Adoption, StaleError, digest
from retriever.artifacts import Artifact
from retriever.errors import CorruptError, StoreError
from retriever.refresh_policy import RefreshConfig, parse_trigger
from retriever.store import Store

READY = RefreshConfig(trigger="steps:10", adopt="ready", max_staleness=50)
SCHEDULED = RefreshConfig(trigger="steps:10", adopt="scheduled", lag=5)


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retriever.adoption, "POLL_SECONDS", 0.002)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", create=True)


def mine(store: Store, step: int) -> int:
    """Publish a negative set mined from the checkpoint of ``step`` and return its number."""
    with store.negatives.stage({"generation": step // 10}) as draft:
        (draft.path / "passages.npy").write_text(f"negatives of step {step}")
        draft.facts.update(step=step)
    return draft.number


@dataclass
class Side:
    """One trainer's adoption, and a refresher that says what it is told to."""

    store: Store
    config: RefreshConfig
    trouble_is: str | None = None
    stop: Event = field(default_factory=Event)
    told: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def marked(self, checkpoint: Artifact) -> None: ...

    def trouble(self) -> str | None:
        return self.trouble_is

    def report(self, event: str, **fields: Any) -> None:
        self.told.append((event, fields))

    def adoption(self) -> Adoption:
        trigger = parse_trigger(self.config.trigger, 50)
        return Adoption(self.store, self.config, trigger, self, self.report, self.stop)

    def warnings(self) -> list[str]:
        return [fields["message"] for event, fields in self.told if event == "warning"]


def numbers(adoption: Adoption, steps: range) -> dict[int, int]:
    """Take the boundaries of ``steps`` and return the sets adopted by step."""
    found = {step: adoption.at(step) for step in steps}
    return {step: artifact.number for step, artifact in found.items() if artifact is not None}


# ---- ready


def test_ready_takes_what_is_there_at_the_next_boundary_once(store: Store) -> None:
    adoption = Side(store, READY).adoption()
    assert numbers(adoption, range(3)) == {}
    first = mine(store, 0)
    assert numbers(adoption, range(3, 6)) == {3: first}
    skipped, newest = mine(store, 2), mine(store, 4)
    assert numbers(adoption, range(6, 9)) == {6: newest}
    assert skipped < newest
    assert adoption.adopted is not None and adoption.adopted.number == newest
    assert (adoption.count, adoption.staleness(8), adoption.max_staleness) == (2, 4, 5)


def test_an_adoption_is_on_the_disk_before_the_boundary_is_passed(store: Store) -> None:
    number = mine(store, 0)
    found = Side(store, READY).adoption().at(4)
    assert found is not None
    recorded = {"step": 4, "set": number, "sha256": digest(found)}
    assert store.adoptions() == [recorded]
    assert json.loads((store.root / "adoptions.jsonl").read_text()) == recorded


def test_before_the_first_set_staleness_counts_from_the_start(store: Store) -> None:
    side = Side(store, READY)
    assert numbers(side.adoption(), range(60)) == {}
    assert side.adoption().staleness(60) == 0


# ---- ready, but late


def test_warn_says_it_once_and_goes_on(store: Store) -> None:
    mine(store, 0)
    side = Side(store, READY)
    assert list(numbers(side.adoption(), range(70))) == [0]
    (warning,) = side.warnings()
    assert "stale" in warning and "max_staleness = 50" in warning


def test_warn_names_a_dead_refresher_once(store: Store) -> None:
    side = Side(store, READY, trouble_is="the refresher is gone")
    numbers(side.adoption(), range(10))
    assert side.warnings() == ["the refresher is gone"]


def test_stop_ends_the_run_with_the_figure_and_the_way_out(store: Store) -> None:
    mine(store, 0)
    adoption = Side(store, RefreshConfig(trigger="steps:10", max_staleness=50, on_stale="stop")).adoption()
    numbers(adoption, range(51))
    with pytest.raises(StaleError, match=r"51 steps stale.*hone refresh"):
        adoption.at(51)


def test_stop_takes_a_fresh_set_rather_than_stop(store: Store) -> None:
    adoption = Side(store, RefreshConfig(trigger="steps:10", max_staleness=50, on_stale="stop")).adoption()
    number = mine(store, 90)
    assert numbers(adoption, range(100, 101)) == {100: number}


def test_wait_waits_for_the_next_set(store: Store) -> None:
    side = Side(store, RefreshConfig(trigger="steps:10", max_staleness=50, on_stale="wait"))
    later = threading.Timer(0.1, mine, (store, 50))
    later.start()
    assert numbers(side.adoption(), range(51, 54)) == {51: 0}
    later.join()
    assert side.warnings()


def test_who_would_wait_in_vain_is_told_to_mark_a_checkpoint(store: Store) -> None:
    adoption = Side(store, RefreshConfig(trigger="steps:200", max_staleness=50, on_stale="wait")).adoption()
    assert not adoption.overdue(60, 0)  # the first set is on its way
    mine(store, 10)
    numbers(adoption, range(61))
    assert not adoption.overdue(60, 10)
    assert adoption.overdue(61, 10) and adoption.overdue(61, 0)
    assert not adoption.overdue(61, 20)  # a marked checkpoint brings the next


@pytest.mark.parametrize("config", [RefreshConfig(max_staleness=50, on_stale="wait"), SCHEDULED])
def test_a_wait_ends_if_nothing_can_come(store: Store, config: RefreshConfig) -> None:
    adoption = Side(store, config, trouble_is="the refresher is gone").adoption()
    with pytest.raises(StaleError, match="cannot come: the refresher is gone"):
        adoption.at(55)


@pytest.mark.parametrize("config", [RefreshConfig(max_staleness=50, on_stale="wait"), SCHEDULED])
def test_a_wait_ends_when_the_run_is_stopped_and_adopts_nothing(store: Store, config: RefreshConfig) -> None:
    side = Side(store, config)
    later = threading.Timer(0.05, side.stop.set)
    later.start()
    assert side.adoption().at(55) is None
    later.join()
    assert store.adoptions() == []


# ---- scheduled


def test_scheduled_adopts_exactly_a_lag_after_the_checkpoint(store: Store) -> None:
    sets = [mine(store, step) for step in (0, 10, 20)]
    adoption = Side(store, SCHEDULED).adoption()
    assert numbers(adoption, range(30)) == {5: sets[0], 15: sets[1], 25: sets[2]}
    assert adoption.max_staleness == 14


def test_scheduled_waits_for_the_one_set_and_says_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retriever.adoption, "REPORT_EVERY_POLLS", 5)
    mine(store, 0)
    side = Side(store, SCHEDULED)
    adoption = side.adoption()
    numbers(adoption, range(15))
    later = threading.Timer(0.1, mine, (store, 10))
    later.start()
    assert numbers(adoption, range(15, 20)) == {15: 1}
    later.join()
    assert {fields["step"] for event, fields in side.told if event == "waiting"} == {15}


def test_scheduled_takes_the_newest_of_two_sets_of_a_step(store: Store) -> None:
    """A refresher that was killed may mine a checkpoint again."""
    mine(store, 0)
    again = mine(store, 0)
    mine(store, 10)
    assert numbers(Side(store, SCHEDULED).adoption(), range(5, 6)) == {5: again}


def test_scheduled_takes_no_damaged_set(store: Store) -> None:
    number = mine(store, 0)
    (store.negatives.path(number) / "passages.npy").write_text("other bytes")
    with pytest.raises(CorruptError):
        Side(store, SCHEDULED).adoption().at(5)
    assert store.adoptions() == []


# ---- resumed


def adopted_at_3_and_7(store: Store) -> list[int]:
    adoption = Side(store, READY).adoption()
    sets = [mine(store, 0)]
    numbers(adoption, range(3, 7))
    sets.append(mine(store, 6))
    numbers(adoption, range(7, 10))
    return sets


@pytest.mark.parametrize("step", range(10))
def test_a_resumed_run_replays_what_was_recorded(store: Store, step: int) -> None:
    first, second = adopted_at_3_and_7(store)
    mine(store, 8)  # newer, and yet not for the steps that were done once
    adoption = Side(store, READY).adoption()
    adoption.resume(step)
    in_use = None if step <= 3 else first if step <= 7 else second
    assert (adoption.adopted.number if adoption.adopted else None) == in_use
    assert adoption.count == sum(at < step for at in (3, 7))
    replayed = numbers(adoption, range(step, 8))
    assert replayed == {at: number for at, number in ((3, first), (7, second)) if at >= step}
    assert len(store.adoptions()) == 2


def test_after_the_replay_new_sets_are_adopted_again(store: Store) -> None:
    adopted_at_3_and_7(store)
    newest = mine(store, 8)
    adoption = Side(store, READY).adoption()
    adoption.resume(5)
    assert numbers(adoption, range(5, 10)) == {7: 1, 8: newest}
    assert [record["step"] for record in store.adoptions()] == [3, 7, 8]


def test_scheduled_replays_what_it_recorded(store: Store) -> None:
    sets = [mine(store, step) for step in (0, 10)]
    numbers(Side(store, SCHEDULED).adoption(), range(18))
    adoption = Side(store, SCHEDULED).adoption()
    adoption.resume(12)
    assert adoption.adopted is not None and adoption.adopted.number == sets[0]
    assert numbers(adoption, range(12, 18)) == {15: sets[1]}
    assert len(store.adoptions()) == 2


def resumed_at_3(adoption: Adoption, step: int) -> None:
    """Resume where the first set is in use (after step 3), or come to the step that adopts it."""
    adoption.resume(step)
    adoption.at(3)


@pytest.mark.parametrize("step", [2, 5])
def test_a_recorded_set_with_other_bytes_is_refused(store: Store, step: int) -> None:
    adopted_at_3_and_7(store)
    (store.negatives.path(0) / "passages.npy").write_text("negatives of step 1")
    adoption = Side(store, READY).adoption()
    with pytest.raises(CorruptError):
        resumed_at_3(adoption, step)


@pytest.mark.parametrize("step", [2, 5])
def test_a_recorded_set_with_another_manifest_is_refused(store: Store, step: int) -> None:
    """Sound in itself, but not the set that was adopted."""
    adopted_at_3_and_7(store)
    shutil.rmtree(store.negatives.path(0))
    other = Store(store.root.parent / "other", create=True)
    mine(other, 1)
    shutil.copytree(other.negatives.path(0), store.negatives.path(0))
    adoption = Side(store, READY).adoption()
    with pytest.raises(CorruptError, match="adopted at step 3"):
        resumed_at_3(adoption, step)


def test_a_recorded_set_that_is_gone_is_an_error(store: Store) -> None:
    adopted_at_3_and_7(store)
    shutil.rmtree(store.negatives.path(0))
    with pytest.raises(StoreError):
        Side(store, READY).adoption().resume(5)


# ---- damaged


def test_ready_uses_the_newest_sound_set_and_says_so_once(store: Store) -> None:
    sound, damaged = mine(store, 0), mine(store, 1)
    (store.negatives.path(damaged) / "passages.npy").write_text("other bytes")
    side = Side(store, READY)
    assert numbers(side.adoption(), range(2, 8)) == {2: sound}
    (warning,) = side.warnings()
    assert "using the one before it" in warning


def test_a_run_that_goes_on_with_another_schedule_waits_for_no_checkpoint_that_was_never_marked(store: Store) -> None:
    first = mine(store, 0)
    with store.checkpoints.stage({}) as draft:
        (draft.path / "weights").write_text("of step 20")
        draft.facts.update(step=20, refresh=True)
    side = Side(store, SCHEDULED)
    adoption = side.adoption()
    adoption.resume(18)
    assert numbers(adoption, range(5, 6)) == {5: first}
    assert adoption.at(15) is None  # step 10 was not marked
    (warning,) = side.warnings()
    assert "step 10" in warning
    later = threading.Timer(0.05, mine, (store, 20))
    later.start()
    assert numbers(adoption, range(25, 26)) == {25: 1}
    later.join()
