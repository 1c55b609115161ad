"""Other generations as sources of candidates: one that a pointer names, or the n-th before the one that is mined.

Does not know which model a generation is of: who opens its encoder is handed in.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from indexer.encode import QueryEncoder, remembering_queries
from indexer.promotion import JUDGED, PREVIOUS
from indexer.searcher import open_batch_searcher
from miner.remembered import RememberedSource
from miner.sources import ann_candidates, generation_of
from retriever.artifacts import BEST, CURRENT, SERVED, Artifact, Series
from retriever.durable import sha256_json
from retriever.errors import InputError, StoreError
from retriever.protocols import Encoder, IntArray
from retriever.store import Store

BASELINE = "BASELINE"
"""Pointer to the generation of checkpoint 0: what the model could do before training."""
MOVED_BY_HONE = (CURRENT, SERVED, BEST, BASELINE, JUDGED, PREVIOUS)

OpenEncoder = Callable[[Artifact], Encoder]
Search = Callable[[Sequence[str]], IntArray]
"""Texts to the rows int32 [n, depth] of candidates, best first, −1 pads."""


def check_pinned(store: Store, sources: Sequence[str]) -> None:
    """Raise InputError if ``sources`` name a generation by a pointer that nobody has set; hone's own come with time."""
    for name in sources:
        pointer = generation_of(name)
        if isinstance(pointer, str) and pointer not in MOVED_BY_HONE:
            _pinned(store.generations, pointer, name)


def other_generations(store: Store, generation: Artifact, sources: Sequence[str]) -> dict[str, Artifact]:
    """Return what ``named_generations`` does, each intact. Raises CorruptError for one that is torn."""
    found = named_generations(store.generations, generation, sources)
    for other in found.values():
        if other.number != generation.number:
            other.verify()
    return found


def named_generations(generations: Series, generation: Artifact, sources: Sequence[str]) -> dict[str, Artifact]:
    """Return by name the generations that ``sources`` ask for while ``generation`` is mined, unopened.

    One that there is not yet, of a run that has only begun or by a name that hone will set, is left out. Raises
    InputError for a pointer that names none, one of another corpus or one that cannot be searched, StoreError for one
    that was removed.
    """
    found: dict[str, Artifact] = {}
    for name in sources:
        wanted = generation_of(name)
        if isinstance(wanted, str):
            if wanted not in MOVED_BY_HONE or generations.pointed(wanted) is not None:
                found[name] = _pinned(generations, wanted, name)
        elif isinstance(wanted, int):
            before = earlier(generations, generation, wanted)
            if len(before) == wanted:
                found[name] = before[-1]
    for name, other in found.items():
        if other.parents["corpus"] != generation.parents["corpus"]:
            raise InputError(
                f"[negatives] sources: {name} is generation {other.number} of corpus {other.parents['corpus']}, "
                f"mined is corpus {generation.parents['corpus']}; pin one of the same corpus"
            )
        if is_rescored(other.facts):
            raise InputError(
                f"[negatives] sources: {name} is generation {other.number}, which scores the pools of a set anew and "
                "cannot be searched; pin another"
            )
    return found


def _pinned(generations: Series, pointer: str, name: str) -> Artifact:
    number = generations.pointed(pointer)
    if number is None:
        raise InputError(
            f"[negatives] sources: {name}, but no generation has that name; run `hone pin generations N {pointer}`"
        )
    if not generations.path(number).exists():
        raise StoreError(f"[negatives] sources: {name} is generation {number}, which was removed; pin another")
    return generations.at(number)


def is_rescored(facts: Mapping[str, Any]) -> bool:
    """Tell whether the generation with these ``facts`` can score the pools of its parent set, and nothing else."""
    return bool((facts.get("partial") or {}).get("method") == "rescore")


def earlier(generations: Series, newest: Artifact, count: int) -> list[Artifact]:
    """Return at most ``count`` generations of steps before that of ``newest``, the latest step first.

    Of a step that a resumed trainer published again it is the last one: a run meets what it met before. A rebuild
    stands beside the generation of its checkpoint, whenever it was made. Generations whose vectors only follow from
    others' (rescored ones) are passed over, as they cannot be searched. Raises StoreError where one may be meant that
    was removed.
    """
    known: dict[int, Artifact] = {}
    for number in range(newest.number):
        with suppress(StoreError):  # gone or torn: told below, if this one may be meant
            known[number] = generations.at(number)
    found: list[Artifact] = []
    bar = newest.facts["step"]
    for before in sorted(known.values(), key=lambda one: (one.parents["checkpoint"], one.number), reverse=True):
        if len(found) < count and before.facts["step"] < bar and not is_rescored(before.facts):
            found.append(before)
            bar = before.facts["step"]
    reached = min((one.number for one in found), default=newest.number) if len(found) == count else -1
    for number in range(newest.number - 1, reached, -1):
        if number not in known and generations.path(number).exists():
            generations.at(number)  # says what is wrong with it
        if number not in known:
            raise StoreError(
                f'[negatives] sources: "generation:-{count}" counts {count} back from generation {newest.number}, but '
                f"generation {number} was removed; name a later one, or start afresh with --new"
            )
    return found


def furthest_back(sources: Sequence[str]) -> int:
    """Return how many generations before the mined one ``sources`` reach."""
    return max((wanted for name in sources if isinstance(wanted := generation_of(name), int)), default=0)


def generation_source(
    generation: Artifact,
    open_encoder: OpenEncoder,
    queries: Sequence[str],
    depth: int,
    cache_folder: Path,
    warn: Callable[[str], None],
) -> RememberedSource:
    """Return the source of the ``depth`` passages nearest to each of ``queries`` in ``generation``, by its own encoder.

    All are found before it returns, so that one generation is open at a time. They are kept with the vectors of its
    query fingerprint in ``cache_folder``, and go when those go. Raises StoreError if the encoder is not its own.
    """

    @cache
    def opened() -> Search:
        return open_search(generation, open_encoder, depth, cache_folder, warn)

    def search(texts: Sequence[str]) -> IntArray:
        return opened()(texts)

    files = generation.manifest["files"]
    key = {
        "files": {name: files[name]["sha256"] for name in files if not name.startswith("lexical/")},
        "queries": sha256_json(list(queries)),
        "depth": depth,
        "search": [generation.facts.get(name) for name in ("search", "search_deep")],
    }
    folder = cache_folder / generation.facts["query_fingerprint"] / f"candidates-{sha256_json(key)}"
    source = RememberedSource(queries, depth, folder, search)
    source.fill()
    opened.cache_clear()
    return source


def open_search(
    generation: Artifact,
    open_encoder: OpenEncoder,
    depth: int,
    cache_folder: Path | None = None,
    warn: Callable[[str], None] = lambda _: None,
) -> Search:
    """Open ``generation`` to find the ``depth`` passages nearest to texts, by its own encoder.

    With ``cache_folder`` the texts' vectors are kept there; ``warn`` is told of damaged ones that are made anew. Raises
    StoreError if the encoder is not its own.
    """
    encoder = open_encoder(generation)
    check_space(generation, encoder)
    encode: QueryEncoder = encoder.encode_queries
    if cache_folder is not None:
        encode = remembering_queries(encoder, cache_folder, warn)
    searcher = open_batch_searcher(generation)
    return lambda texts: ann_candidates(searcher, encode(texts), depth)[0]


def check_space(generation: Artifact, encoder: Encoder) -> None:
    """Raise StoreError if the vectors of ``generation`` are not of the space of ``encoder``."""
    if encoder.fingerprints.space != generation.facts["space"]:
        raise StoreError(
            f"{generation.path}: its vectors are of space {generation.facts['space']}, "
            f"the encoder's of {encoder.fingerprints.space}; open the encoder from the generation's own model"
        )
