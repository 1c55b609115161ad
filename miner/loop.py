"""The refresher's loop: each checkpoint that the trainer marks becomes a generation, then a negative set.

Does not know how either is made, nor torch: both makers are handed in.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from threading import Event
from typing import Any, Literal, Protocol

from indexer.promotion import promote_if_good
from indexer.shards import drop_unused
from miner.generations import earlier
from miner.lexical import drop_unused_candidates
from miner.teacher import drop_unused_scores
from retriever.artifacts import CURRENT, Artifact, Series
from retriever.errors import CorruptError, StoreError
from retriever.store import Store

POLL_SECONDS = 0.2

Adopt = Literal["ready", "scheduled"]
Make = Callable[[Artifact], Artifact]


class Report(Protocol):
    """Told what happens, by name and fields.

    Events: build, generation_reused, negatives_published, skipped, corrupt, removed, drained.
    """

    def __call__(self, event: str, **fields: Any) -> None:
        """Take one event."""
        ...


@dataclass(frozen=True)
class Retention:
    """How many of the newest ``generations`` and ``negatives`` the refresher keeps, and all younger than the grace.

    Negative sets that a resumed trainer may still need are kept beyond their number, generations that the sources of
    the next set ``reach`` back to also. ``behind_sets``: also those that such sets were mined from, as where training
    reads their vectors.
    """

    generations: int = 3
    negatives: int = 8
    grace_seconds: float = 300.0
    reach: int = 0
    behind_sets: bool = False


def refresh(
    store: Store,
    build: Make,
    publish: Make,
    stop: Event,
    adopt: Adopt,
    report: Report,
    retention: Retention | None = None,
) -> None:
    """Follow the marked checkpoints until ``stop`` is set or the final one is done.

    ``build`` publishes a checkpoint's generation and takes it to the gate, ``publish`` mines its negative set. A kill
    at any instant costs the unfinished artifact alone: what is done is read from the artifacts, and a generation that
    is already there only passes the gate again, which judges each but once.

    Under "ready" the newest intact marked checkpoint is taken and older ones are skipped. Under "scheduled" each is
    taken in order and a corrupt one raises CorruptError. Raises BusyError if another process builds or mines.
    """
    retention = retention or Retention()
    with store.generations.writer(), store.negatives.writer():
        seen, final = _last_handled(store.negatives, report)
        while not stop.is_set():
            newest = store.checkpoints.pointed(CURRENT)
            if newest is None or newest <= seen:
                if final:
                    report("drained", checkpoint=seen)
                    return
                stop.wait(POLL_SECONDS)
                continue
            marked = _marked(store.checkpoints, range(seen + 1, newest + 1), adopt, report)
            for checkpoint in _chosen(marked, adopt, report):
                if stop.is_set():
                    return
                _advance(store, checkpoint, build, publish, report)
                _tidy(store, checkpoint.facts["step"], retention, report)
            seen, final = newest, bool(marked) and marked[-1].number == newest and _is_final(marked[-1])


def _is_final(artifact: Artifact) -> bool:
    return bool(artifact.facts.get("final"))


def _last_handled(negatives: Series, report: Report) -> tuple[int, bool]:
    """Return the checkpoint of the newest intact mined set (−1: none) and whether it was the final one.

    A kill between a set's publication and the move of CURRENT leaves it unnamed: the move is made here.
    """
    for number in reversed(negatives.numbers()):
        newest = _intact(negatives, number, lambda artifact: "checkpoint" in artifact.parents, report)
        if newest is not None:
            _point_forward(negatives, number)
            return newest.parents["checkpoint"], _is_final(newest)
    return -1, False


def _intact(series: Series, number: int, wanted: Callable[[Artifact], bool], report: Report) -> Artifact | None:
    """Return artifact ``number`` if it is ``wanted`` and its bytes are right; a corrupt one is reported."""
    try:
        artifact = series.at(number)
        if not wanted(artifact):
            return None
        artifact.verify()
        return artifact
    except CorruptError as error:
        report("corrupt", kind=series.kind, number=number, error=str(error))
        return None


def _point_forward(series: Series, number: int) -> None:
    named = series.pointed(CURRENT)
    if named is None or named < number:
        series.point(CURRENT, number)


def _marked(checkpoints: Series, numbers: range, adopt: Adopt, report: Report) -> list[Artifact]:
    """Return the checkpoints among ``numbers`` that ask for a refresh, ascending; numbers may be gone.

    A trainer that resumes further back publishes some steps again: the checkpoint of a step is the last one.
    """
    marked: list[Artifact] = []
    for number in numbers:
        try:
            checkpoint = checkpoints.at(number)
        except CorruptError as error:
            if adopt == "scheduled":
                raise
            report("corrupt", kind=checkpoints.kind, number=number, error=str(error))
            continue
        except StoreError:
            continue  # the trainer removes the checkpoints that it keeps no longer
        if checkpoint.facts.get("refresh") or _is_final(checkpoint):
            while marked and marked[-1].facts["step"] >= checkpoint.facts["step"]:
                report("skipped", checkpoints=[marked.pop().number])
            marked.append(checkpoint)
    return marked


def _chosen(marked: list[Artifact], adopt: Adopt, report: Report) -> Iterator[Artifact]:
    """Yield the checkpoints to refresh from, each verified: all of them, or under "ready" the newest intact one."""
    if adopt == "scheduled":
        for checkpoint in marked:
            checkpoint.verify()
            yield checkpoint
        return
    for place, checkpoint in reversed(list(enumerate(marked))):
        try:
            checkpoint.verify()
        except CorruptError as error:
            report("corrupt", kind=checkpoint.kind, number=checkpoint.number, error=str(error))
            continue
        if place:
            report("skipped", checkpoints=[older.number for older in marked[:place]])
        yield checkpoint
        return


def _advance(store: Store, checkpoint: Artifact, build: Make, publish: Make, report: Report) -> None:
    """Let ``checkpoint`` have a generation and a negative set."""
    step = checkpoint.facts["step"]
    generation = _generation_of(store.generations, checkpoint.number, report)
    if generation is None:
        report("build", checkpoint=checkpoint.number, step=step)
        generation = build(checkpoint)
    else:
        report("generation_reused", checkpoint=checkpoint.number, step=step, generation=generation.number)
        promote_if_good(store, generation)
    negatives = publish(generation)
    by_source = {"by_source": found} if (found := negatives.facts.get("by_source")) else {}
    report("negatives_published", number=negatives.number, generation=generation.number, step=step, **by_source)


def _generation_of(generations: Series, checkpoint: int, report: Report) -> Artifact | None:
    """Return the newest intact generation of ``checkpoint``, named by CURRENT, if a kill left one without its set.

    One of another configuration, with which the run went on before, is none: it may not be what is mined from now.
    """

    def wanted(made: Artifact) -> bool:
        same = made.manifest["config_sha256"] == generations.origin["config_sha256"]
        return same and made.parents.get("checkpoint") == checkpoint

    for number in reversed(generations.numbers()):
        found = _intact(generations, number, wanted, report)
        if found is not None:
            _point_forward(generations, number)
            return found
    return None


def _tidy(store: Store, step: int, retention: Retention, report: Report) -> None:
    """Remove what nobody reads any more, now that the checkpoint of ``step`` is done."""
    needed = _sets_needed(store, step)
    generations = max(retention.generations, _generations_reached(store, retention.reach))
    behind = _generations_behind(store, needed) if retention.behind_sets else set()
    keep = {"generations": generations, "negatives": max(retention.negatives, needed)}
    for kind, newest in keep.items():
        removed = store.retain(kind, newest, retention.grace_seconds, behind if kind == "generations" else ())
        if removed:
            report("removed", kind=kind, numbers=removed)
    drop_unused(store)
    drop_unused_scores(store)
    drop_unused_candidates(store)


def _generations_reached(store: Store, reach: int) -> int:
    """Count the generations from the ``reach``-th before the newest on: mining from that one again needs each."""
    numbers = store.generations.numbers()
    if not reach:
        return 0
    try:
        newest = store.generations.at(numbers[-1])
        oldest = min(one.number for one in (newest, *earlier(store.generations, newest, reach)))
    except StoreError:
        return len(numbers)  # one of them is gone or torn: nothing more is taken away
    return sum(number >= oldest for number in numbers)


def _generations_behind(store: Store, sets: int) -> set[int]:
    """Return the generations that the newest ``sets`` were mined from."""
    found: set[int] = set()
    for number in store.negatives.numbers()[-sets:] if sets else ():
        with suppress(StoreError):  # its reader reports it
            found |= store.negatives.at(number).numbers_of("generation")
    return found


def _sets_needed(store: Store, step: int) -> int:
    """Count the sets from the one in use before ``step`` on: a trainer resumed there replays or awaits each."""
    adopted = [adoption["set"] for adoption in store.adoptions() if adoption["step"] < step]
    oldest = adopted[-1] if adopted else 0
    return sum(number >= oldest for number in store.negatives.numbers())
