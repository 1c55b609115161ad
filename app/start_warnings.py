"""What a run is warned of before its first step: settings that are allowed and do less than they seem to.

Does not know the data but for how many queries there are.
"""

from app.config import RunConfig
from retriever.counting import counted


def warnings_at_start(config: RunConfig, queries: int) -> list[str]:
    """Return what to say of a run that learns from so many ``queries``."""
    told = (
        _drawn_without_quotas(config),
        _drawn_from_what_is_stored(config),
        _scarcely_taught(config),
        _never_clustered(config, queries),
        _never_replaced(config, queries),
        _begun_anew(config),
        _drawn_by_nobody(config),
    )
    return [one for one in told if one is not None]


def _drawn_without_quotas(config: RunConfig) -> str | None:
    """Return what to say where quotas are one learner's and the other draws another number, so without them."""
    quotas, ranker, train = config.negatives.quotas, config.ranker, config.train
    if quotas is None or ranker is None or config.turns.retriever == 0:
        return None
    key = "num_negatives" if train.drawn_negatives is None else "drawn_negatives"
    total, drawn = sum(quotas.values()), train.drawn_negatives or train.num_negatives
    by = {f"[train] draws its {key}": drawn, "[ranker] draws its num_negatives": ranker.num_negatives}
    for who, count in by.items():
        if count not in (0, total):
            return f"[negatives] quotas add up to {total} negatives: {who} = {count} by the sampler alone"
    return None


def _drawn_from_what_is_stored(config: RunConfig) -> str | None:
    """Return what to say where the retriever has a way of its own to its negatives, which its ranker has not."""
    negatives, turns = config.negatives, config.turns
    own = "live" if negatives.live else "per_query" if negatives.per_query is not None else None
    if own is None or config.ranker is None or turns.retriever == 0:
        return None
    return f"[negatives] {own} is the retriever's alone: [ranker] draws from the mined candidates by the sampler"


def _scarcely_taught(config: RunConfig) -> str | None:
    """Return what to say where negatives are drawn among candidates of which [teacher] depth leaves most unscored."""
    teacher, train, negatives = config.teacher, config.train, config.negatives
    if teacher is None or teacher.depth is None or not teacher.is_stored:
        return None
    reach = min(negatives.width, (negatives.range_max or negatives.width) - negatives.range_min)
    drawn = train.drawn_negatives or train.num_negatives
    if drawn == 0 or teacher.depth >= (drawn if negatives.sampler.name == "top" else reach):
        return None
    return (
        f"[teacher] depth = {teacher.depth} scores so many candidates of a query, and negatives are drawn among "
        f"{reach}: of one without a score nothing is taught; raise it, or lower [negatives] range_max"
    )


def _never_clustered(config: RunConfig, queries: int) -> str | None:
    """Return what to say where [batches] ngame ends before its first epoch with clusters; ``queries``: how many."""
    train, steps = config.train, config.turns.taken("retriever", config.train.max_steps)
    if config.batches.name != "ngame" or steps == 0:
        return None
    random = config.batches.knobs["double_every"] * -(-queries // train.batch_size)
    if steps * train.accumulation > random:
        return None
    return (
        f"[batches] ngame: its first {random} batches are random, and the {counted(steps, 'step', 'steps')} of this "
        'run take no more; raise [train] max_steps, or write name = "random"'
    )


def _never_replaced(config: RunConfig, queries: int) -> str | None:
    """Return what to say where [negatives] per_query ends before it has met a query twice."""
    steps = config.turns.taken("retriever", config.train.max_steps)
    epoch = -(-queries // config.train.batch_size)
    if config.negatives.per_query is None or steps == 0 or steps * config.train.accumulation > epoch:
        return None
    return (
        f"[negatives] per_query replaces a query's negatives when it meets it again, and the "
        f"{counted(steps, 'step', 'steps')} of this run meet none twice; raise [train] max_steps"
    )


def _begun_anew(config: RunConfig) -> str | None:
    """Return what to say where each negative set lets [negatives] per_query forget."""
    if config.negatives.per_query is None or config.refresh.trigger == "once":
        return None
    return '[negatives] per_query begins anew with each negative set; write [refresh] trigger = "once"'


def _drawn_by_nobody(config: RunConfig) -> str | None:
    """Return what to say where negative sets are mined that neither model, nor a plan of batches, reads."""
    refresh, train = config.refresh, config.train
    stored = config.teacher is not None and config.teacher.is_stored
    read = train.num_negatives > 0 or config.batches.name == "b3" or config.ranker is not None or stored
    if read or refresh.trigger in ("never", "once") or config.turns.retriever == 0:
        return None
    return (
        f'[train] num_negatives = 0: nobody draws from the negative sets that [refresh] trigger = "{refresh.trigger}" '
        'mines; write trigger = "never" if you do not need the generations between'
    )
