import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import retriever.artifacts
from indexer.promotion import JUDGED
from miner.loop import Retention
from retriever.artifacts import CURRENT, SERVED
from retriever.errors import BusyError, CorruptError
from retriever.store import Store
from tests.miner.refreshers import Refresher, lineage, mark, run_of_four, spoil

KEEP_ALL = Retention(generations=100, negatives=100)


class Killed(BaseException):
    """The process ended here."""


def run_of_two(store: Store) -> None:
    mark(store, 0, refresh=True)
    mark(store, 100, final=True)


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
    run_of_two(calm)
    steps = strike(monkeypatch, calm, -1, done=done)
    # Two generations of a folder and the pointers CURRENT, SERVED and JUDGED, PREVIOUS for the second, two sets of a
    # folder and CURRENT.
    assert steps == 13
    for fatal in range(1, steps + 1):
        struck = Store(tmp_path / f"struck-{fatal}", create=True)
        run_of_two(struck)
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


@pytest.mark.parametrize("kind", ["generations", "negatives"])
def test_a_second_refresher_is_refused(store: Store, kind: str) -> None:
    mark(store, 0, refresh=True)
    other = Store(store.root)
    with other.series(kind).writer(), pytest.raises(BusyError, match=f"already writing {kind}"):
        Refresher(store).run()
