"""The models of one snapshot behind the admission: texts in, vectors and scores out.

Does not know HTTP, corpora or indexes.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from threading import Event, Lock
from typing import Any

import numpy as np

from app.admission import Admission, AdmissionConfig, ComputeError, Done, Lane, NotComputedError, TooManyTokensError
from retriever.errors import HoneError
from retriever.protocols import FloatArray, Side, TokenEncoder, TokenRanker
from retriever.query_cache import QueryCache

SLICE_TEXTS, SLICE_CHARACTERS = 64, 65_536
"""Of a slice that is tokenised while others wait for their turn."""
INLINE_CHARACTERS = 16_384
"""Up to this much text is tokenised at once, where a thread would cost more than it spares."""
MOST_CHARACTERS = 16_777_216
"""Of a query, once for each passage that it is scored with: so often it is tokenised."""
SMALL = ThreadPoolExecutor(2, "tokenise-small")
"""Where small requests wait for their turn: never behind the whole of a large one."""
ENDINGS: dict[str, Side] = {"query": "query", "passage": "passage", "document": "passage"}
LEAST = 1e-7
"""Distance to 0 and 1 from which a float32 probability says no more of its log-odds."""


class NoRankerError(HoneError):
    """Scores were asked for where no ranker is loaded."""


@dataclass(frozen=True)
class Computed:
    """What became of a request: values, tokens that were read, inputs that were cut, seconds.

    ``longest``: tokens of the longest input as it was read; where one was cut, those that the model reads of it.
    """

    values: FloatArray
    tokens: int
    longest: int
    cut: int
    queue_seconds: float
    compute_seconds: float


@dataclass(frozen=True)
class _Towers:
    """What callers of one encoder share: a lane a side, the queries asked lately, and whose turn it is to tokenise."""

    lanes: dict[Side, Lane]
    cache: QueryCache = field(default_factory=QueryCache)
    turn: Lock = field(default_factory=Lock)


@dataclass(frozen=True)
class _Pairs:
    """What callers of one ranker share: its lane, and whose turn it is to tokenise."""

    lane: Lane
    turn: Lock = field(default_factory=Lock)


@dataclass
class _Tokenised:
    items: list[Any]
    tokens: list[int]
    cut: int


class Models:
    """An encoder and perhaps a ranker, for many callers: tokenised here, computed by the admission's thread.

    A query that was asked lately is not computed again.
    """

    def __init__(
        self, encoder: TokenEncoder, ranker: TokenRanker | None = None, before: "Models | None" = None
    ) -> None:
        """With a model that ``before`` has as well, what its callers share is shared with those of ``before``."""
        self.encoder = encoder
        self.ranker = ranker
        sides: tuple[Side, Side] = ("query", "passage")
        self._towers = _Towers({side: Lane(partial(encoder.encode_tokens, side)) for side in sides})
        self._pairs = None if ranker is None else _Pairs(Lane(ranker.score_tokens))
        if before is not None and before.encoder is encoder:
            self._towers = before._towers
        if before is not None and before.ranker is ranker:
            self._pairs = before._pairs

    @property
    def longest(self) -> int:
        """Tokens of the longest text that the encoder reads."""
        return max(self.encoder.max_length("query"), self.encoder.max_length("passage"))

    def side_of(self, name: str | None) -> Side | None:
        """Return the side that ``name``, of a model or prompt, ends in; None if it says neither and they differ."""
        for ending, side in ENDINGS.items():
            if name is not None and name.lower().endswith(ending):
                return side
        return "passage" if self.encoder.alike else None

    def probabilities(self, scores: FloatArray) -> FloatArray:
        """Return the ranker's ``scores`` float32 [n] as numbers from 0 to 1."""
        assert self.ranker is not None
        return scores if self.ranker.probable else (0.5 * (1 + np.tanh(0.5 * scores))).astype(np.float32)

    def log_odds(self, scores: FloatArray) -> FloatArray:
        """Return the ranker's ``scores`` float32 [n] as log-odds."""
        assert self.ranker is not None
        if not self.ranker.probable:
            return scores
        within = np.clip(scores.astype(np.float64), LEAST, 1 - LEAST)
        return (np.log(within) - np.log1p(-within)).astype(np.float32)

    async def encode(
        self, admission: Admission, side: Side, texts: Sequence[str], *, patient: bool | None = None
    ) -> Computed:
        """Return vectors float32 [len(texts), dimensions]; raises what ``Admission.compute`` does.

        ``patient`` None: whatever is more than one batch is.
        """
        tokenise = partial(self._tokenise, side)
        read = await _tokenised(texts, [*map(len, texts)], tokenise, self._towers.turn, admission.config)
        places = {text: place for place, text in reversed([*enumerate(texts)])}
        found = self._towers.cache.known(places) if side == "query" else {}
        missing = [text for text in places if text not in found]
        items = [read.items[places[text]] for text in missing]
        tokens = [read.tokens[places[text]] for text in missing]
        if patient is None:
            patient = sum(tokens) > admission.config.batch_tokens
        try:
            done = await admission.compute(self._towers.lanes[side], items, tokens, patient)
        except ComputeError as error:
            raise error.at(places[missing[error.place]]) from error.cause
        fresh = dict(zip(missing, done.results, strict=True))
        if side == "query":
            self._towers.cache.keep(fresh)
        found |= fresh
        return _computed(np.stack([found[text] for text in texts]), read, done)

    async def score(self, admission: Admission, query: str, passages: Sequence[str]) -> Computed:
        """Return scores float32 [len(passages)] of the ranker; raises as ``encode``.

        Raises NoRankerError where there is none, TooManyTokensError for more than MOST_CHARACTERS.
        """
        if self._pairs is None:
            raise NoRankerError(
                "no ranker is loaded; put one into a generation with `hone index --ranker FOLDER`, or serve one with "
                "`hone serve --ranker FOLDER`"
            )
        repeated = len(query) * len(passages)
        if repeated > MOST_CHARACTERS:
            raise TooManyTokensError(
                f"a query of {len(query)} characters with {len(passages)} passages is read as {repeated}, the limit is "
                f"{MOST_CHARACTERS}; shorten it, or send fewer passages"
            )
        lengths = [len(query) + len(passage) for passage in passages]
        tokenise = partial(self._tokenise_pairs, query)
        read = await _tokenised(passages, lengths, tokenise, self._pairs.turn, admission.config)
        patient = sum(read.tokens) > 8 * admission.config.batch_tokens
        done = await admission.compute(self._pairs.lane, read.items, read.tokens, patient)
        return _computed(np.array(done.results, np.float32), read, done)

    def _tokenise(self, side: Side, texts: Sequence[str]) -> _Tokenised:
        ids, cut = self.encoder.tokenize(side, texts)
        return _Tokenised([*ids], [len(one) for one in ids], cut)

    def _tokenise_pairs(self, query: str, passages: Sequence[str]) -> _Tokenised:
        assert self.ranker is not None
        return _Tokenised(*self.ranker.tokenize([query] * len(passages), passages))


async def _tokenised(
    texts: Sequence[str],
    lengths: Sequence[int],
    tokenise: Callable[[Sequence[str]], _Tokenised],
    turn: Lock,
    config: AdmissionConfig,
) -> _Tokenised:
    """Tokenise ``texts`` of ``lengths`` characters a slice at a time, so that nobody waits long for the ``turn`` to.

    Off the loop where there are many characters, and where another's slice would have to be waited for. Raises
    NotComputedError once the deadline of ``config`` has passed, which is a patient one's for many.
    """
    given_up = Event()

    def in_slices(turn: AbstractContextManager[Any]) -> _Tokenised:
        whole = _Tokenised([], [], 0)
        for part in slices(lengths):
            with turn:
                read = tokenise(texts[part])
            whole.items.extend(read.items)
            whole.tokens.extend(read.tokens)
            whole.cut += read.cut
            if given_up.is_set():
                break
        return whole

    few = sum(lengths) <= INLINE_CHARACTERS
    if few and turn.acquire(blocking=False):
        try:
            return in_slices(nullcontext())
        finally:
            turn.release()
    seconds = config.deadline_seconds if few else config.patient_deadline_seconds
    try:
        async with asyncio.timeout(seconds):
            return await asyncio.get_running_loop().run_in_executor(SMALL if few else None, in_slices, turn)
    except TimeoutError as error:
        raise NotComputedError(f"not tokenised within {seconds:.1f} s; try again later, or send less") from error
    finally:
        given_up.set()


def slices(lengths: Sequence[int]) -> Iterator[slice]:
    """Yield slices of texts of ``lengths`` characters: up to 64, and no more than 65,536 characters but of one text."""
    start = held = 0
    for place, length in enumerate(lengths):
        if place - start == SLICE_TEXTS or (place > start and held + length > SLICE_CHARACTERS):
            yield slice(start, place)
            start, held = place, 0
        held += length
    if lengths:
        yield slice(start, len(lengths))


def _computed(values: FloatArray, read: _Tokenised, done: Done) -> Computed:
    return Computed(
        values, sum(read.tokens), max(read.tokens, default=0), read.cut, done.queue_seconds, done.compute_seconds
    )
