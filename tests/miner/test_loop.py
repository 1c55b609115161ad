import threading

import pytest

from miner.loop import POLL_SECONDS, Adopt, Retention
from retriever.artifacts import CURRENT
from retriever.store import Store
from tests.miner.refreshers import Refresher, import_set, lineage, mark, run_of_four


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
    later = {300: 400}  # marked while the former end of the run is built

    def train_on(step: int) -> None:
        if step in later:
            mark(store, later[step], refresh=True, final=True)

    assert Refresher(store, while_building=train_on).run().built == [0, 100, 200, 300, 400]


def test_a_final_checkpoint_is_not_the_end_once_another_has_followed(store: Store) -> None:
    run_of_four(store)
    mark(store, 350)
    refresher = Refresher(store)
    thread = threading.Thread(target=refresher.run)
    thread.start()
    while thread.is_alive() and len(refresher.told("negatives_published")) < 4:
        thread.join(0.01)
    thread.join(3 * POLL_SECONDS)  # time to look once more, and to end if it took checkpoint 300 for the last
    mark(store, 400, refresh=True, final=True)
    thread.join(10)
    assert not thread.is_alive() and refresher.built == [0, 100, 200, 300, 400]


@pytest.mark.parametrize("adopt", ["ready", "scheduled"])
def test_of_a_step_published_twice_the_last_checkpoint_counts(store: Store, adopt: Adopt) -> None:
    mark(store, 0, refresh=True)
    mark(store, 100, refresh=True)
    mark(store, 200, refresh=True)  # then a kill: the trainer resumes from step 50
    mark(store, 100, refresh=True)
    refresher = Refresher(store, adopt)
    mark(store, 150, final=True)
    refresher.run()
    assert refresher.built == ([150] if adopt == "ready" else [0, 100, 150])
    assert store.negatives.at(store.negatives.numbers()[-1]).parents["checkpoint"] == 4
    skipped = sorted(number for fields in refresher.told("skipped") for number in fields["checkpoints"])
    assert skipped == ([0, 1, 2, 3] if adopt == "ready" else [1, 2])


def test_checkpoints_that_the_trainer_removed_are_passed_over(store: Store) -> None:
    run_of_four(store)
    store.checkpoints.remove(1)
    assert Refresher(store).run().built == [0, 100, 200, 300]


def test_an_imported_set_is_not_taken_for_work_done_or_undone(store: Store) -> None:
    run_of_four(store)
    Refresher(store, stop_after="negatives_published").run()
    assert import_set(store) == 1
    assert Refresher(store).run().built == [100, 200, 300]
    newest = import_set(store)
    assert Refresher(store).run().built == []
    assert store.negatives.pointed(CURRENT) == newest


def test_old_generations_go_with_their_embeddings_and_old_sets_with_their_scores(store: Store) -> None:
    for step in range(6):
        mark(store, step, refresh=True, final=step == 5)
    store.record_adoption(3, 3, "digest")  # a trainer resumed from here on needs the sets from 3 on
    refresher = Refresher(store, retention=Retention(generations=2, negatives=2, grace_seconds=0))
    refresher.run()
    kept = store.generations.numbers()
    assert kept[-2:] == [4, 5] and set(kept) <= {0, 4, 5} | set(store.generations.pointers().values())
    assert sorted(path.name for path in store.embeddings.iterdir()) == [f"fingerprint-{n}" for n in kept]
    scores = sorted(path.name for path in store.teacher.iterdir())
    assert scores == [f"scores-{number}" for number in store.negatives.numbers()] and len(scores) < 6
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
    for step, number in [(150, 0), (250, 1), (350, 2), (600, 4)]:
        store.record_adoption(step, number, "")
    mark(store, 600, refresh=True, final=True)
    Refresher(store, retention=sets).run()
    # A trainer that resumes at step 600 has set 2 in use and only then adopts set 4 anew.
    assert store.negatives.numbers() == [2, 3, 4, 5]


def test_generations_behind_the_sets_that_a_trainer_needs_stay_where_it_reads_their_vectors(store: Store) -> None:
    """A scheduled run may adopt a set that several others have followed."""
    keep = Retention(generations=1, negatives=1, grace_seconds=0, behind_sets=True)
    for step in range(0, 500, 100):
        mark(store, step, refresh=True, final=step == 400)
    store.record_adoption(150, 2, "")
    Refresher(store, retention=keep).run()
    pointed = set(store.generations.pointers().values())
    assert set(store.generations.numbers()) == {2, 3, 4} | pointed
    mark(store, 500, refresh=True, final=True)
    store.record_adoption(450, 4, "")
    Refresher(store, retention=keep).run()
    assert set(store.generations.numbers()) == {4, 5} | set(store.generations.pointers().values())


@pytest.mark.parametrize(("configuration", "built"), [("", []), ("another", [0])])
def test_a_generation_left_without_its_set_is_mined_from_by_its_own_configuration_alone(
    store: Store, configuration: str, built: list[int]
) -> None:
    mark(store, 0, refresh=True, final=True)
    Refresher(store).build(store.checkpoints.at(0))  # then a kill, and the run goes on
    assert Refresher(Store(store.root, configuration)).run().built == built
