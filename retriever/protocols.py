"""The ports between packages: what an encoder, ranker, searcher, source of negatives, batch plan and judge promise.

Numpy in, numpy out; does not know torch, FAISS or any implementation.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from retriever.tokens import Tokens

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int32]
BoolArray = NDArray[np.bool_]
Side = Literal["query", "passage"]

Progress = Callable[[int, int], None]
"""Called with (units done, units in all); raises to cancel the work."""


def silent(done: int, total: int) -> None:
    """Report progress to nobody."""


@dataclass(frozen=True)
class Fingerprints:
    """What identifies vectors: ``passage`` and ``query`` key one tower's, ``space`` tells which two may be compared.

    ``passage_tokens`` and ``query_tokens`` identify the token ids of a side, "" where they are not kept.
    """

    passage: str
    query: str
    space: str
    passage_tokens: str = ""
    query_tokens: str = ""

    def as_facts(self) -> dict[str, str]:
        """Return them under the names that manifests use."""
        known = {name: value for name, value in asdict(self).items() if value}
        return {f"{name}_fingerprint" if name != "space" else name: value for name, value in known.items()}


class Encoder(Protocol):
    """Turns texts into vectors; a text's vector does not depend on its neighbours beyond rounding."""

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        ...

    @property
    def fingerprints(self) -> Fingerprints:
        """What identifies this encoder's vectors."""
        ...

    @property
    def computed_by(self) -> str:
        """Engine and number format that compute passages, such as "torch fp32"."""
        ...

    def encode_queries(self, texts: Sequence[str], progress: Progress = silent) -> FloatArray:
        """Return float32 [len(texts), dimensions] from the query tower."""
        ...

    def encode_passages(self, texts: Sequence[str], progress: Progress = silent) -> FloatArray:
        """Return float32 [len(texts), dimensions] from the passage tower."""
        ...


class TokenEncoder(Encoder, Protocol):
    """An encoder whose two steps may be taken apart, so that texts of many callers can be computed together.

    ``alike``: both sides have the same weights and prompt, so that they differ at most in how much of a text they read.
    Neither step is for several threads at once. ``cut_texts``: how many texts of each side were longer than is read
    of them, since somebody last told of it.
    """

    cut_texts: dict[Side, int]

    @property
    def pooling(self) -> str:
        """How token vectors become one: cls, mean or last."""
        ...

    @property
    def alike(self) -> bool:
        """Whether a text has the same vector on both sides."""
        ...

    def max_length(self, side: Side) -> int:
        """Return how many tokens of a text of ``side`` are read, prompt included."""
        ...

    def tokenize(self, side: Side, texts: Sequence[str]) -> tuple[list[list[int]], int]:
        """Return the token ids of each text, cut to the maximum length, and how many texts were cut."""
        ...

    def encode_tokens(self, side: Side, token_ids: Sequence[Sequence[int]], progress: Progress = silent) -> FloatArray:
        """Return float32 [len(token_ids), dimensions]."""
        ...


@runtime_checkable
class TokenKeeper(Encoder, Protocol):
    """An encoder whose token ids may be kept for the next one: its ``fingerprints`` tell which ids those are.

    Vectors and counts of texts that were cut are the same either way.
    """

    def encode_keeping(
        self, side: Side, texts: Sequence[str], progress: Progress = silent
    ) -> tuple[FloatArray, Tokens]:
        """Return float32 [len(texts), dimensions], and the token ids of ``texts``."""
        ...

    def encode_kept(self, side: Side, tokens: Tokens, progress: Progress = silent) -> FloatArray:
        """Return float32 [len(tokens), dimensions] of texts whose ids ``encode_keeping`` returned."""
        ...


class Ranker(Protocol):
    """Scores a query and a passage read together; a pair's score does not depend on its neighbours beyond rounding."""

    @property
    def fingerprint(self) -> str:
        """What identifies this ranker's scores."""
        ...

    def score(self, queries: Sequence[str], passages: Sequence[str], progress: Progress = silent) -> FloatArray:
        """Return float32 [n], higher is more relevant: of ``passages[i]`` for ``queries[i]``, n of each.

        Raises ValueError if there are not as many passages as queries.
        """
        ...


class TokenRanker(Ranker, Protocol):
    """A ranker whose two steps may be taken apart, like a TokenEncoder's.

    ``probable``: a score is a probability; else it is its log-odds.
    """

    @property
    def probable(self) -> bool:
        """Whether scores lie between 0 and 1."""
        ...

    def tokenize(self, queries: Sequence[str], passages: Sequence[str]) -> tuple[list[Any], list[int], int]:
        """Return each pair as ``score_tokens`` takes it, how many tokens it has, and how many pairs were cut."""
        ...

    def score_tokens(self, pairs: Sequence[Any]) -> FloatArray:
        """Return float32 [len(pairs)] of pairs that ``tokenize`` returned."""
        ...


class Searcher(Protocol):
    """Answers from one index."""

    @property
    def rows(self) -> int:
        """Number of passages in the index."""
        ...

    def search(self, queries: FloatArray, depth: int) -> tuple[IntArray, FloatArray]:
        """Return the rows int32 [n, depth], best first, −1 pads, and scores float32 [n, depth] for float32 [n, dim]."""
        ...


@dataclass(frozen=True)
class Negatives:
    """Hard negatives of one batch: ``rows`` int32 [batch, k], ``scores`` float32 [batch, k], ``mask`` bool [batch, k].

    Where ``mask`` is False the place is empty: the query has fewer eligible negatives than k. ``sources`` uint8
    [batch, k], where they are known, are bits over the set's facts.sources: who brought each of them.
    """

    rows: IntArray
    scores: FloatArray
    mask: BoolArray
    sources: NDArray[np.uint8] | None = None


class NegativeSource(Protocol):
    """Draws the hard negatives of a batch; the same arguments always give the same draw."""

    def draw(self, query_rows: IntArray, step: int) -> Negatives:
        """Return negatives for ``query_rows`` int32 [batch] at training step ``step``."""
        ...


@runtime_checkable
class WatchingSource(NegativeSource, Protocol):
    """A source whose draws follow from the scores that training sees; its state belongs to a checkpoint."""

    def observe(self, query_rows: IntArray, scores: FloatArray) -> None:
        """Take the mean score float32 [batch] of each query's drawn negatives, nan where it had none."""
        ...

    def save(self, folder: Path) -> None:
        """Write the state into ``folder``."""
        ...

    def restore(self, folder: Path) -> bool:
        """Take up what ``save`` wrote; False if there is nothing, and the state begins anew."""
        ...


class BatchPlanner(Protocol):
    """Orders the training queries of an epoch into batches; the same arguments always give the same plan.

    Every plan of a run has as many batches as the others, so that a step's epoch does not depend on them.
    """

    def plan(self, epoch: int, bank: FloatArray | None = None) -> IntArray:
        """Return query rows int32 [batches, batch size].

        ``bank`` float32 [queries, dim] holds each query's newest embedding as training made it, None if none is kept.
        """
        ...


@dataclass(frozen=True)
class PairText:
    """A pair to be judged: ids and texts of query and passage, and the text of one of the query's positives."""

    query_id: str
    query: str
    passage_id: str
    passage: str
    positive: str


@dataclass(frozen=True)
class Judgement:
    """What became of asking a judge about one pair; where it failed, ``relevant`` is None and ``failure`` names why.

    ``again``: the failure may pass, so a later run asks anew. ``score`` is what a threshold was laid on, ``answer``
    what was said in words; ``cost`` is in the currency of the judge's prices.
    """

    relevant: bool | None
    failure: str | None = None
    again: bool = False
    score: float | None = None
    answer: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0


Answered = Callable[[Mapping[int, Judgement]], None]
"""Called with judgements by the place of their pair; raises to end the judge's work."""


class Judge(Protocol):
    """Says whether passages are relevant to queries; what it cannot say of one pair costs that pair alone."""

    @property
    def name(self) -> str:
        """What a person calls it."""
        ...

    @property
    def fingerprint(self) -> str:
        """What decides its answers: model, prompt, threshold."""
        ...

    @property
    def provenance(self) -> Mapping[str, str]:
        """What is written beside each of its judgements, such as the model and a hash of the prompt."""
        ...

    @property
    def reads_positive(self) -> bool:
        """Whether an answer depends on the pair's positive."""
        ...

    def judge(self, pairs: Sequence[PairText], answered: Answered) -> None:
        """Hand the judgement of each of ``pairs`` to ``answered``, once, in any order and in batches of any size.

        Pairs that are not answered for when it returns were not asked about, as where a budget is spent.
        """
        ...
