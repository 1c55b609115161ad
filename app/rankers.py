"""Rankers: the one that a generation holds or that is named beside it, checked when opened, and how one comes into it.

Does not know how pairs are scored, nor what the scores are for.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from app.progress import Report
from indexer.builder import RankerFiles, ranker_of
from retriever.artifacts import Artifact
from retriever.durable import sha256_json
from retriever.errors import CorruptError, InputError
from retriever.protocols import FloatArray
from retriever.ranker import RankerConfig, load_ranker
from retriever.ranker_files import save_ranker
from retriever.ranker_learner import RankerTrainConfig
from retriever.scoring import TorchRanker
from retriever.teacher import Score, TeacherConfig

Opened = TypeVar("Opened")


@contextmanager
def saved_ranker(name: str | None) -> Iterator[RankerFiles | None]:
    """Give the files of the ranker ``name``, a folder or a hub id, as a generation holds them; None for None.

    Raises InputError if it cannot be loaded.
    """
    if name is None:
        yield None
        return
    model = load_ranker(RankerConfig(name))
    with tempfile.TemporaryDirectory(prefix="hone-ranker-") as folder:
        save_ranker(model, Path(folder) / "ranker")
        yield RankerFiles(Path(folder) / "ranker", model.facts())


def named_ranker(name: str) -> TorchRanker:
    """Open the ranker ``name``, a folder or a hub id. Raises InputError if it cannot be loaded."""
    return TorchRanker(load_ranker(RankerConfig(name)), "auto")


def teaching_ranker(config: TeacherConfig, precision: str) -> TorchRanker:
    """Open the ranker that [teacher] names; it answers with log-odds, whatever activation its files name.

    ``precision`` is that of [index]; int8 is for vectors alone. Raises InputError if it cannot be loaded.
    """
    named = RankerConfig(config.name, max_length=config.max_length, activation="identity", label=config.label)
    try:
        model = load_ranker(named)
    except InputError as error:
        raise InputError(str(error).replace("[ranker]", "[teacher]", 1)) from error
    return TorchRanker(model, "auto" if precision == "int8" else precision)


def teacher_of_ranker(config: RankerTrainConfig, precision: str, device: str) -> TorchRanker:
    """Open the ranker that ``config`` names as teacher; it answers with log-odds. Raises InputError if that fails."""
    assert config.teacher is not None
    named = RankerConfig(config.teacher, config.teacher_max_length, activation="identity", label=config.teacher_label)
    try:
        model = load_ranker(named)
    except InputError as error:
        told = str(error).replace("[ranker] name", "[ranker] teacher", 1)
        for key in ("max_length", "label"):
            told = told.replace(f"[ranker] {key}", f"[ranker] teacher_{key}", 1)
        raise InputError(told) from error
    return TorchRanker(model, precision, device)


def telling_cuts(ranker: TorchRanker, key: str, report: Report) -> Score:
    """Return what scores by ``ranker`` and reports once that it cut pairs; ``key`` is what says at how many tokens."""
    told = False

    def score(queries: Sequence[str], passages: Sequence[str]) -> FloatArray:
        nonlocal told
        scores = ranker.score(queries, passages)
        if ranker.cut_pairs and not told:
            told = True
            report("warning", message=f"the teacher reads some pairs of query and passage cut to {key}")
        return scores

    return score


def own_ranker(artifact: Artifact) -> TorchRanker | None:
    """Open the ranker that a checkpoint or generation holds, None if it holds none.

    Raises CorruptError if it is not the one that the manifest tells of.
    """
    held = ranker_of(artifact)
    return None if held is None else held_ranker(held)


def held_ranker(held: RankerFiles) -> TorchRanker:
    """Open the ranker of ``held``. Raises CorruptError if it is not the one that its facts tell of."""
    try:
        model = load_ranker(RankerConfig(str(held.folder)))
    except InputError as error:
        raise CorruptError(f"{held.folder}: cannot be opened ({error}); build it again") from error
    found = model.facts()
    differing = [name for name in found if held.facts.get(name, found[name]) != found[name]]
    if differing:
        raise CorruptError(f"{held.folder}: its {differing[0]} is not that of the manifest; build it again")
    return TorchRanker(model, "auto")


def required_ranker(name: str | None, artifact: Artifact | None) -> TorchRanker:
    """Open the ranker ``name`` or else that of ``artifact``. Raises InputError where there is neither."""
    found = named_ranker(name) if name is not None else None if artifact is None else own_ranker(artifact)
    if found is None:
        where = "there is no ranker" if artifact is None else f"generation {artifact.number} holds no ranker"
        raise InputError(
            f"{where}; --ranker FOLDER names one, and `hone index --ranker FOLDER` puts one into a generation"
        )
    return found


def kept(opener: Callable[[Artifact], Opened], below: str, fact: str | None = None) -> Callable[[Artifact], Opened]:
    """Return ``opener`` so that it opens anew only where the files below the folder ``below``, or ``fact``, changed."""
    last: dict[str, Opened] = {}

    def open_or_keep(artifact: Artifact) -> Opened:
        names = [name for name in artifact.manifest["files"] if name.startswith(f"{below}/")]
        held = {name: artifact.sha256(name) for name in names}
        key = sha256_json([held, None if fact is None else artifact.facts[fact]])
        if key not in last:
            opened = opener(artifact)
            last.clear()
            last[key] = opened
        return last[key]

    return open_or_keep
