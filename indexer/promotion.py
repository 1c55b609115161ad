"""Moves the pointers SERVED and BEST to a published generation where the gate lets it pass, once for each generation.

Does not know how a generation is built or what the gate's rule is.
"""

from indexer.gate import Facts, GateVerdict, judge
from retriever.artifacts import BEST, SERVED, Artifact
from retriever.errors import StoreError
from retriever.store import Store

JUDGED = "JUDGED"
"""Pointer to the newest generation that was judged, so that judging again never undoes a rollback of SERVED."""


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
        verdict = judge(generation.facts, _facts(store, SERVED), _facts(store, BEST))
        if verdict.served:
            series.point(SERVED, generation.number)
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


def _facts(store: Store, pointer: str) -> Facts | None:
    """Return the facts of the generation that ``pointer`` names, None if it names none that can still be read."""
    try:
        generation = store.generations.get(pointer)
    except StoreError:  # a broken generation cannot hold its place against a sound one
        return None
    return None if generation is None else generation.facts
