"""What the server answers from: one snapshot of a generation, and the thread that swaps it when SERVED moves.

Does not know HTTP, nor who moves SERVED.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event, Thread

import numpy as np
from structlog.typing import FilteringBoundLogger

from app.hidden_paths import hide_paths
from app.models import Models
from indexer.gate import is_partial
from indexer.lexical import LexicalIndex, open_lexical
from indexer.passage_fields import PassageFields
from indexer.promotion import intact_served
from indexer.searcher import IndexSearcher, open_searcher
from indexer.shards import Vectors, open_vectors
from retriever.artifacts import CURRENT, SERVED, Artifact
from retriever.data import Corpus
from retriever.errors import CorruptError, InputError
from retriever.protocols import TokenEncoder, TokenRanker
from retriever.store import Store

POLL_SECONDS = 0.5
RETRY_SECONDS = 30.0
STOP_SECONDS = 2.0
UNREADABLE = -1
WARM_UP_TEXT = "which passage answers this query?"


def _no_ranker(generation: Artifact) -> None:
    return None


@dataclass(frozen=True)
class Openers:
    """How the models of a generation are opened; ``ranker`` gives None where there is none."""

    encoder: Callable[[Artifact], TokenEncoder]
    ranker: Callable[[Artifact], TokenRanker | None] = _no_ranker


@dataclass(frozen=True)
class Snapshot:
    """A generation with all that answers from it; a request reads it once, so its parts always belong together."""

    generation: Artifact
    corpus: Corpus
    models: Models
    searcher: IndexSearcher
    vectors: Vectors
    lexical: LexicalIndex | None
    fields: PassageFields

    @property
    def space(self) -> str:
        """Fingerprint of the vectors that may be compared with this generation's."""
        return self.encoder.fingerprints.space

    @property
    def encoder(self) -> TokenEncoder:
        """The encoder, for one thread at a time: many callers share it through ``models``."""
        return self.models.encoder


def load_snapshot(
    store: Store,
    openers: Openers,
    warn: Callable[[str], None],
    *,
    number: int | None = None,
    served: Snapshot | None = None,
) -> Snapshot:
    """Open generation ``number``, or the one that SERVED names, with its checksums verified and every part warm.

    A corrupt SERVED generation is reported through ``warn`` and the one before it that was served is taken; a corrupt
    ``number`` is an error. Of ``served``, the snapshot before, the parts that have not changed are used again.
    Raises InputError if nothing is served yet or ``number`` is partial, StoreError or CorruptError if there is no
    intact generation.
    """
    generation = _intact(store, number, warn)
    if is_partial(generation.facts):
        raise InputError(
            f"{generation.path}: partial, to be mined from alone, since most of its vectors are not its model's; "
            "name a full generation"
        )
    corpus = _corpus(store, generation.parents["corpus"], served)
    snapshot = Snapshot(
        generation,
        corpus,
        _models(openers, generation, served),
        open_searcher(generation),
        open_vectors(generation.path / "vectors"),
        open_lexical(generation.path / "lexical", generation.facts["rows"]),
        served.fields if served is not None and served.corpus is corpus else PassageFields(corpus),
    )
    _check(snapshot)
    _warm_up(snapshot, None if served is None else served.models)
    return snapshot


def _intact(store: Store, number: int | None, warn: Callable[[str], None]) -> Artifact:
    if number is not None:
        generation = store.generations.at(number)
        generation.verify()
        return generation
    found = intact_served(store, warn)
    if found is None:
        newest = store.generations.pointed(CURRENT)
        refused = f"the gate lets none pass: `hone promote {newest}` says why, --force serves it all the same"
        advice = "build one with `hone index`" if newest is None else refused
        raise InputError(f"{store.generations.folder}: no generation is served yet; {advice}")
    return found


def _corpus(store: Store, number: int, served: Snapshot | None) -> Corpus:
    if served is not None and served.corpus.number == number:
        return served.corpus
    artifact = store.corpora.at(number)
    artifact.verify()
    return Corpus(artifact)


def _models(openers: Openers, generation: Artifact, served: Snapshot | None) -> Models:
    """Open the models of ``generation``, or take those of ``served`` if the openers have handed them out again."""
    encoder, ranker = openers.encoder(generation), openers.ranker(generation)
    if served is not None and served.models.encoder is encoder and served.models.ranker is ranker:
        return served.models
    return Models(encoder, ranker, None if served is None else served.models)


def _check(snapshot: Snapshot) -> None:
    """Raise CorruptError if the parts of a snapshot were not made for each other."""
    name = f"{snapshot.generation.path}"
    rows = {"corpus": len(snapshot.corpus), "index": snapshot.searcher.rows, "vectors": len(snapshot.vectors)}
    if len(set(rows.values())) > 1:
        raise CorruptError(f"{name}: the parts differ in their number of rows ({rows}); build it again")
    if snapshot.space != snapshot.generation.facts["space"]:
        raise CorruptError(f"{name}: its encoder is not the one that made its vectors; build it again")


def _warm_up(snapshot: Snapshot, before: Models | None) -> None:
    """Make the first request as quick as the next: run each part once, but no model that ``before`` had as well."""
    encoder, ranker = snapshot.models.encoder, snapshot.models.ranker
    if before is None or before.encoder is not encoder:
        encoder.encode_queries([WARM_UP_TEXT])
    if ranker is not None and (before is None or before.ranker is not ranker):
        ranker.score([WARM_UP_TEXT], [WARM_UP_TEXT])
    rows, _ = snapshot.searcher.search(snapshot.vectors.gather(np.zeros(1, np.int32)), min(10, snapshot.searcher.rows))
    snapshot.corpus.row_of(snapshot.corpus.id(max(0, int(rows[0, 0]))))


class Serving:
    """Holds the snapshot that is served, and follows SERVED, also backwards, in a thread of its own.

    ``snapshot`` is None before the first is loaded, ``problem`` tells clients why the last attempt failed. A generation
    that cannot be loaded is logged and counted, the snapshot before it stays, and the generation is tried again later.
    """

    def __init__(
        self,
        store: Store,
        openers: Openers,
        logger: FilteringBoundLogger,
        swapped: Callable[[str], None],
        poll_seconds: float = POLL_SECONDS,
        check: Callable[[Snapshot], None] = lambda snapshot: None,
    ) -> None:
        """``swapped`` is told "loaded" or "failed" after each attempt; what ``check`` raises makes it fail."""
        self.snapshot: Snapshot | None = None
        self.problem = ""
        self._store = store
        self._openers = openers
        self._logger = logger
        self._swapped = swapped
        self._poll_seconds = poll_seconds
        self._check = check
        self._failed: int | None = None
        self._retry_at = 0.0
        self._stop = Event()
        self._thread: Thread | None = None

    def start(self) -> None:
        """Begin to follow SERVED."""
        self._stop.clear()
        self._thread = Thread(target=self._follow, name="follow-served", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop following; what is being loaded is given up."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=STOP_SECONDS)

    def _follow(self) -> None:
        while not self._stop.is_set():
            self.catch_up()
            self._stop.wait(self._poll_seconds)

    def catch_up(self) -> None:
        """Load what SERVED names, unless it is served already or has just failed, and swap it in."""
        wanted: int | None = UNREADABLE
        try:
            wanted = self._store.generations.pointed(SERVED)
            if wanted is not None and wanted == self.number:
                self._failed, self.problem = None, ""  # another could not be loaded, and is wanted no longer
            if wanted is None or self._is_settled(wanted):
                return
            loaded = self._load(wanted)
            self._check(loaded)
            self.snapshot = loaded
        except Exception as error:
            if not self._is_settled(wanted):
                self._failed, self._retry_at = wanted, time.monotonic() + RETRY_SECONDS
                self.problem = hide_paths(str(error))
                self._swapped("failed")
                self._logger.exception("swap_failed", wanted=wanted, serving=self.number)
        else:
            self._failed, self.problem = None, ""
            self._swapped("loaded")
            self._logger.info("swapped", wanted=wanted, serving=self.number)

    @property
    def number(self) -> int | None:
        """Number of the generation that is served."""
        snapshot = self.snapshot
        return None if snapshot is None else snapshot.generation.number

    def _is_settled(self, wanted: int | None) -> bool:
        return wanted == self.number or (wanted == self._failed and time.monotonic() < self._retry_at)

    def _load(self, number: int) -> Snapshot:
        served = self.snapshot
        if served is None:
            return load_snapshot(self._store, self._openers, self._warn)
        return load_snapshot(self._store, self._openers, self._warn, number=number, served=served)

    def _warn(self, message: str) -> None:
        self._logger.warning("artifact_skipped", reason=message)
