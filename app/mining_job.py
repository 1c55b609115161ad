"""Mining as a job: the request's queries in parts, each mined once, its lines kept before the next is begun.

Does not know HTTP, nor who started the process.
"""

import hashlib
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from app.config_bodies import config_of
from app.job_work import JobProgress
from app.jobs import Job, Jobs
from app.judgements import Judgements
from app.mine_schemas import Knobs
from app.mining import Asked, fitted, mined, query_set, with_judgements
from app.snapshot import Openers, Snapshot, load_snapshot
from app.trainer_formats import FORMATS, Example, line
from miner.filters import REASONS
from miner.generations import Search, open_search
from miner.mining import MiningConfig
from retriever.errors import InputError
from retriever.protocols import IntArray
from retriever.store import Store

MINE = "mine"
PART_QUERIES = 256
HONE = "hone"
LINE = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE


def asked_parts(queries: Sequence[Asked]) -> list[bytes]:
    """Return ``queries`` as JSON lines, PART_QUERIES a part."""
    lines = [orjson.dumps([query.id, query.text, list(query.positives)]) + b"\n" for query in queries]
    return [b"".join(lines[start : start + PART_QUERIES]) for start in range(0, len(lines), PART_QUERIES)]


def digest(parts: Iterable[bytes]) -> str:
    """Return the SHA-256 of all ``parts``."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()


def mine_parts(store: Store, openers: Openers, jobs: Jobs, job: Job, progress: JobProgress) -> dict[str, Any]:
    """Mine what ``job`` was asked for from its generation; parts that an earlier attempt has made are kept.

    Returns the job's result: generation, other generations by source, format, how many queries, lines and negatives,
    how many queries have no line, how many were cut, and by reason how many candidates were filtered away. Raises
    StoreError if a generation was removed, CorruptError if it is torn.
    """
    params = job.params
    progress("open", 0, 1)
    generation, others = store.generations.at(params["generation"]), params.get("others", {})
    config = config_of(MiningConfig, Knobs.model_validate(params["knobs"]))
    config = fitted(config, generation.facts["rows"])
    made = jobs.parts(job.id, "made")
    waiting = [number for number in jobs.parts(job.id, "asked") if number not in made]
    total, done = params["queries"], sum(facts["queries"] for facts in made.values())

    def queries_of(part: int) -> list[Asked]:
        return [Asked(*orjson.loads(one)) for one in jobs.part(job.id, "asked", part).splitlines()]

    position = params.get("judgements", 0)  # those that were there when it was queued: each attempt gives the same
    with closing(Judgements(jobs.url)) as judgements, tempfile.TemporaryDirectory(prefix="hone-candidates-") as folder:
        numbers, searched = sorted({*others.values()}) if waiting else [], 0
        for number in numbers:
            search = _opened(store, openers, number, config.depth)
            for part in waiting:
                np.save(_place(folder, number, part), search([query.text for query in queries_of(part)]))
                searched += 1
                progress("search other generations", searched, len(numbers) * len(waiting))
            del search  # before the next one is opened
        snapshot = load_snapshot(store, openers, _refuse, number=generation.number)
        progress("mine", done, total)
        for part in waiting:
            queries = with_judgements(queries_of(part), judgements, position)
            found = {name: np.load(_place(folder, number, part), allow_pickle=False) for name, number in others.items()}
            data, made[part] = _mined_part(snapshot, queries, config, params, found)
            jobs.keep_part(job.id, part, data, made[part])
            done += len(queries)
            progress("mine", done, total)
    sums = {name: sum(facts[name] for facts in made.values()) for name in ("queries", "lines", "negatives", "left_out")}
    named = {"others": others} if others else {}
    # an earlier version's parts do not say what was cut or filtered
    sums["cut_queries"] = sum(facts.get("cut_queries", 0) for facts in made.values())
    told = [facts.get("filtered", {}) for facts in made.values()]
    filtered = {reason: sum(one.get(reason, 0) for one in told) for reason in REASONS}
    return {"generation": generation.number, **named, "format": params["format"], **sums, "filtered": filtered}


def _opened(store: Store, openers: Openers, number: int, depth: int) -> Search:
    generation = store.generations.at(number)
    generation.verify()
    return open_search(generation, openers.encoder, depth)


def _place(folder: str, number: int, part: int) -> Path:
    """Return where the candidates lie that generation ``number`` has for a part."""
    return Path(folder, f"{number}-{part}.npy")


def _refuse(message: str) -> None:
    raise InputError(message)


def _mined_part(
    snapshot: Snapshot,
    queries: Sequence[Asked],
    config: MiningConfig,
    params: dict[str, Any],
    candidates: Mapping[str, IntArray],
) -> tuple[bytes, dict[str, Any]]:
    """Return the lines of ``queries`` and facts on them; ``candidates`` int32 [q, depth] are other generations'."""
    count = params["num_negatives"]
    snapshot.encoder.cut_texts["query"] = 0
    vectors = snapshot.encoder.encode_queries([query.text for query in queries])
    others = {name: found.__getitem__ for name, found in candidates.items()}
    found = mined(snapshot, queries, vectors, config, count, params["seed"], others)
    if params["format"] == HONE:
        lines = [[orjson.dumps(one, option=LINE)] for one in found.results]
    else:
        known, write = query_set(snapshot, queries), FORMATS[params["format"]]
        lines = []
        for row, one in enumerate(found.results):
            negatives = [snapshot.corpus.row_of(negative["id"]) for negative in one["negatives"]]
            example = Example(row, np.asarray(known.positives(row)).tolist(), [n for n in negatives if n is not None])
            records = write(snapshot.corpus, known, example, count) if negatives else []
            lines.append([line(record).encode() for record in records])
    data = b"".join(one for of_query in lines for one in of_query)
    return data, {
        "queries": len(queries),
        "lines": sum(map(len, lines)),
        "negatives": found.negatives,
        "filtered": found.filtered,
        "left_out": sum(not of_query for of_query in lines),
        "cut_queries": snapshot.encoder.cut_texts["query"],
        "bytes": len(data),
    }
