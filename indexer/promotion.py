"""Moves the pointers SERVED and BEST: where the gate lets a generation pass, or where a person says so.

Does not know how a generation is built or what the gate's rule is. Each move of SERVED is a line of promotions.jsonl.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from indexer.dev_record import (
    DIFFERENCES,
    QUERIES,
    RERANKED_DIFFERENCES,
    DevRecord,
    read_record,
    shared_queries,
)
from indexer.gate import NOT_RERANKED, Facts, GateVerdict, Pairs, Reranked, is_partial, judge
from indexer.slices import slices_of
from retriever.artifacts import BEST, CURRENT, SERVED, Artifact, Draft
from retriever.durable import append_line, read_lines
from retriever.errors import InputError, StoreError
from retriever.protocols import FloatArray, IntArray
from retriever.store import Store

JUDGED = "JUDGED"
"""Pointer to the newest generation that was judged, so that judging again never undoes a rollback of SERVED."""
PREVIOUS = "PREVIOUS"
"""Pointer to the generation that was served before: it is kept for a rollback."""
LEDGER = "promotions.jsonl"

GATE, PROMOTE, FORCE, ROLLBACK, PIN = "gate", "promote", "force", "rollback", "pin"


def judge_draft(store: Store, draft: Draft) -> None:
    """Put the gate's verdict on a generation that is about to be published into its facts and files.

    ``facts.gate`` holds the checks and ``against``, the served generation; dev/differences.npy float32 [Q] holds the
    candidate's figure of each dev query minus that generation's, nan where there is none to compare with, and
    dev/reranked_differences.npy the same of the figures after reranking, where both generations hold a ranker.
    """
    served = _readable(store, SERVED)
    record = DevRecord.read(draft.path) if (draft.path / QUERIES).exists() else None
    old = None if served is None else _record(served)
    if record is not None and old is not None:
        np.save(draft.path / DIFFERENCES, _differences(record, old, record.figures, old.figures))
        if record.reranked is not None and old.reranked is not None:
            differences = _differences(record, old, record.reranked, old.reranked)
            np.save(draft.path / RERANKED_DIFFERENCES, differences)
    verdict = _verdict(store, draft.facts, record, served, old)
    draft.facts["gate"] = {**verdict.as_facts(), "against": None if served is None else served.number}


def promote_if_good(store: Store, generation: Artifact) -> GateVerdict:
    """Judge ``generation``, move SERVED and BEST accordingly, log the event "generation_published", return the verdict.

    May be called again, also after a crash in between: a generation that was judged to the end, or one older than
    such, moves nothing and logs nothing. Raises BusyError while another process builds.
    """
    series = store.generations
    with series.writer():
        judged = series.pointed(JUDGED)
        if judged is not None and judged >= generation.number:
            named = {pointer: series.pointed(pointer) == generation.number for pointer in (SERVED, BEST)}
            return GateVerdict(named[SERVED], named[BEST], "judged before")
        verdict = judge_again(store, generation)
        if verdict.served:
            _serve(store, generation.number, GATE, verdict)
        if verdict.best:
            series.point(BEST, generation.number)
        store.log_event(
            "generation_published",
            number=generation.number,
            step=generation.facts["step"],
            weights_sha256=generation.facts["weights_sha256"],
            dev=generation.facts["dev"],
            served=verdict.served,
            best=verdict.best,
            reason=verdict.reason,
            seconds=generation.facts["seconds"],
        )
        series.point(JUDGED, generation.number)
    return verdict


def judge_again(store: Store, generation: Artifact) -> GateVerdict:
    """Return the gate's verdict on ``generation`` against what is served now; nothing moves."""
    served = _readable(store, SERVED)
    old = None if served is None else _record(served)
    return _verdict(store, generation.facts, _record(generation), served, old)


def _verdict(
    store: Store, facts: Facts, record: DevRecord | None, served: Artifact | None, old: DevRecord | None
) -> GateVerdict:
    """Judge a generation by its ``facts`` and dev ``record`` against the ``served`` one, whose record is ``old``."""
    fields = facts.get("index_config", {}).get("slices", ())
    pairs = None if record is None or old is None else compare(record, old, fields)
    alike = served is not None and _reranking(facts) == _reranking(served.facts)
    reranked = NOT_RERANKED if record is None else compare_reranked(record, old if alike else None)
    return judge(facts, None if served is None else served.facts, _facts(store, BEST), pairs, reranked)


def _reranking(facts: Facts) -> int | None:
    """Return how many hits of a dev query were reranked, None where none were: other depths are other measures."""
    depth: int | None = (facts.get("reranked") or {}).get("depth")
    return depth


def promote(store: Store, number: int | None = None, *, force: bool = False) -> dict[str, Any]:
    """Let SERVED name generation ``number`` (None: the newest) if the gate passes it, or in any case with ``force``.

    Returns the line of the ledger, which says ``force`` where the gate had refused. Raises InputError with the gate's
    reason for one that it refuses, for a partial one, and where there is none; CorruptError for damaged files.
    """
    generation = store.generations.get(CURRENT) if number is None else store.generations.at(number)
    if generation is None:
        raise InputError(f"{store.generations.folder}: there is no generation yet; build one with `hone index`")
    if is_partial(generation.facts):
        raise InputError(f"generation {generation.number} is partial, to be mined from alone; name a full one")
    generation.verify()
    verdict = judge_again(store, generation)
    if not verdict.served and not force:
        raise InputError(f"generation {generation.number} is refused by the gate: {verdict.reason}; --force serves it")
    return _serve(store, generation.number, PROMOTE if verdict.served else FORCE, verdict)


def pin_served(store: Store, number: int) -> dict[str, Any]:
    """Let SERVED name generation ``number`` without asking the gate, and return the line of the ledger."""
    return _serve(store, number, PIN, None)


def rollback(store: Store) -> dict[str, Any]:
    """Let SERVED name the intact generation that was served before, and return the line of the ledger.

    Repeated, it goes back one more. Raises InputError if there is none.
    """
    series = store.generations
    for number in served_before(store):
        try:
            series.at(number).verify()
        except StoreError:
            continue  # gone or damaged: what was served before it is tried
        return _serve(store, number, ROLLBACK, None)
    raise InputError(f"{series.folder}: no intact generation was served before; `hone promote N` names another")


def served_before(store: Store) -> list[int]:
    """Return what was served before the generation that is served now, newest first, without what was rolled back."""
    now, found = store.generations.pointed(SERVED), list[int]()
    for line in reversed(ledger(store)):
        if line["to"] != now or line["by"] == ROLLBACK:
            continue
        if line["from"] is None:
            break
        now = line["from"]
        found.append(now)
    return found


def intact_served(store: Store, warn: Callable[[str], None]) -> Artifact | None:
    """Return the generation that SERVED names with its checksums verified, None before the first.

    A corrupt one is reported through ``warn``, and the newest intact one before it is taken that was served, too: never
    one that the gate refused. Raises CorruptError if there is none left.
    """

    def fits(generation: Artifact) -> bool:
        if is_partial(generation.facts):
            return False
        if ledger(store):
            return generation.number in served_before(store)
        passed: bool = generation.facts.get("gate", {}).get("served", True)
        return passed

    return store.generations.intact(SERVED, warn, fits)


def ledger(store: Store) -> list[dict[str, Any]]:
    """Return the moves of SERVED in order: {time, from, to, by, reason, checks}."""
    return read_lines(store.root / LEDGER)


def shared_figures(new: Artifact, old: Artifact) -> tuple[DevRecord, IntArray, Pairs]:
    """Return the dev record of ``new``, the places int32 [n] there of the queries that ``old`` has, and both figures.

    Only queries of the same id, text and judgements count. Raises InputError if one has no record.
    """
    records = read_record(new), read_record(old)
    if records[0] is None or records[1] is None:
        bare = new if records[0] is None else old
        raise InputError(f"generation {bare.number} keeps no dev queries; only generations measured on dev compare")
    return records[0], shared_queries(records[0], records[1])[0], compare(records[0], records[1])


def _differences(new: DevRecord, old: DevRecord, now: FloatArray, before: FloatArray) -> FloatArray:
    here, there = shared_queries(new, old)
    found = np.full(len(new.ids), np.nan, np.float32)
    found[here] = now[here] - before[there]
    return found


def compare(new: DevRecord, old: DevRecord, fields: Sequence[str] = ()) -> Pairs:
    """Return the figures of the queries that both have, with slices by data set and by ``fields`` of their metadata."""
    here, there = shared_queries(new, old)
    metadata = [new.metadata[place] for place in here] if new.metadata else ()
    slices = slices_of([new.ids[place] for place in here], metadata, fields)
    return Pairs(new.figures[here], old.figures[there], slices)


def compare_reranked(new: DevRecord, old: DevRecord | None) -> Reranked:
    """Return what the ranker of ``new`` makes of its own hits, and beside what that of ``old`` makes of its."""
    if new.reranked is None:
        return NOT_RERANKED
    known = ~np.isnan(new.reranked)
    own = Pairs(new.reranked[known], new.figures[known])
    if old is None or old.reranked is None:
        return Reranked(own)
    here, there = shared_queries(new, old)
    now, before = new.reranked[here], old.reranked[there]
    both = ~(np.isnan(now) | np.isnan(before))
    return Reranked(own, Pairs(now[both], before[both]))


def _serve(store: Store, number: int, by: str, verdict: GateVerdict | None) -> dict[str, Any]:
    """Write the line first, then move the pointers: a crash between leaves a line more than moves, never one less."""
    series = store.generations
    before, readable = _pointed(store), _readable(store, SERVED) is not None
    line = {"time": time.time(), "from": before, "to": series.at(number).number, "by": by}
    if verdict is not None:
        line |= {"reason": verdict.reason, "checks": verdict.as_facts()["checks"]}
    if before != number:
        append_line(store.root / LEDGER, line)
        if before is not None and readable:
            series.point(PREVIOUS, before)
        series.point(SERVED, number)
    return line


def _record(generation: Artifact) -> DevRecord | None:
    try:
        return read_record(generation)
    except StoreError:  # a broken generation cannot hold its place against a sound one
        return None


def _pointed(store: Store) -> int | None:
    """Return the number in SERVED, also of one that is torn or gone; None if it is none."""
    try:
        return store.generations.pointed(SERVED)
    except StoreError:
        return None


def _readable(store: Store, pointer: str) -> Artifact | None:
    """Return the generation that ``pointer`` names, None if it names none that can still be read."""
    try:
        return store.generations.get(pointer)
    except StoreError:
        return None


def _facts(store: Store, pointer: str) -> Facts | None:
    generation = _readable(store, pointer)
    return None if generation is None else generation.facts
