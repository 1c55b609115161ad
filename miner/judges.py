"""Judges that need no network: a threshold on any scorer's score, and judgements that were recorded before.

Does not know where scorers come from, nor which pairs are judged.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retriever.beir import read_json_lines
from retriever.durable import sha256_file, sha256_json
from retriever.errors import InputError
from retriever.protocols import Answered, Encoder, FloatArray, Judgement, PairText, Progress, Ranker, silent

BLOCK_PAIRS = 256
NOT_A_NUMBER, NOT_RECORDED = "not a number", "not recorded"


class ScoreJudge:
    """Implements retriever.protocols.Judge: relevant is what ``ranker`` scores at least ``threshold``.

    With ``relative`` the threshold is added to the score of the pair's positive: −.1 allows a tenth below it.
    """

    def __init__(self, name: str, ranker: Ranker, threshold: float, *, relative: bool = False) -> None:
        self.name = name
        self.reads_positive = relative
        self.fingerprint = sha256_json([ranker.fingerprint, threshold, relative])[:16]
        self.provenance: Mapping[str, str] = {"model": ranker.fingerprint}
        self._ranker = ranker
        self._threshold = threshold

    def judge(self, pairs: Sequence[PairText], answered: Answered) -> None:
        """Score block by block and hand each on; the pairs of a passage come together, so that it may be read once."""
        order = sorted(range(len(pairs)), key=lambda place: pairs[place].passage_id)
        for start in range(0, len(pairs), BLOCK_PAIRS):
            places = order[start : start + BLOCK_PAIRS]
            block = [pairs[place] for place in places]
            scores = self._ranker.score([pair.query for pair in block], [pair.passage for pair in block])
            floor = np.full(len(block), self._threshold, np.float64)
            if self.reads_positive:
                floor += self._ranker.score([pair.query for pair in block], [pair.positive for pair in block])
            scored = zip(places, scores.tolist(), floor.tolist(), strict=True)
            answered({place: _by_score(score, least) for place, score, least in scored})


def _by_score(score: float, least: float) -> Judgement:
    if not (math.isfinite(score) and math.isfinite(least)):
        return Judgement(None, NOT_A_NUMBER)
    return Judgement(score >= least, score=score)


class EncoderRanker:
    """Implements retriever.protocols.Ranker by an encoder: the inner product of the two texts' vectors."""

    def __init__(self, encoder: Encoder) -> None:
        self.fingerprint = encoder.fingerprints.space
        self._encoder = encoder

    def score(self, queries: Sequence[str], passages: Sequence[str], progress: Progress = silent) -> FloatArray:
        """Return float32 [n]; a text that comes several times is encoded once."""
        if len(queries) != len(passages):
            raise ValueError(f"{len(queries)} queries but {len(passages)} passages: pair i is one of each")
        asked = {text: place for place, text in enumerate(dict.fromkeys(queries))}
        found = {text: place for place, text in enumerate(dict.fromkeys(passages))}
        query_vectors = self._encoder.encode_queries([*asked])[[asked[text] for text in queries]]
        passage_vectors = self._encoder.encode_passages([*found])[[found[text] for text in passages]]
        scores: FloatArray = np.einsum("nd,nd->n", query_vectors, passage_vectors)
        progress(len(queries), len(queries))
        return scores


class RecordedJudge:
    """Implements retriever.protocols.Judge by a file of JSON lines {"query": id, "passage": id, "relevant": true}.

    A later line on the same pair replaces an earlier one; lines whose "relevant" is null, as a ledger has them for
    failures, say nothing. A pair without a line is a failure of the kind "not recorded".
    """

    reads_positive = False

    def __init__(self, name: str, path: Path, only: str | None = None) -> None:
        """``only``: read the lines whose "judge" is this one alone. Raises InputError for what cannot be read."""
        self.name = name
        self._relevant: dict[tuple[str, str], bool] = {}
        for number, record in read_json_lines(path):
            if only is not None and record.get("judge") != only:
                continue
            pair, relevant = _recorded(record, f"{path}:{number}")
            if relevant is not None:
                self._relevant[pair] = relevant
        if not self._relevant:
            of_judge = "" if only is None else f" of judge {only!r}"
            raise InputError(f"{path}: holds no judgement{of_judge}; name another file")
        self.fingerprint = sha256_json([sha256_file(path), only])[:16]
        self.provenance: Mapping[str, str] = {"model": path.name}

    def judge(self, pairs: Sequence[PairText], answered: Answered) -> None:
        """Look each pair up."""
        found = [self._relevant.get((pair.query_id, pair.passage_id)) for pair in pairs]
        answered({n: Judgement(one, NOT_RECORDED if one is None else None) for n, one in enumerate(found)})


def _recorded(record: Mapping[str, Any], where: str) -> tuple[tuple[str, str], bool | None]:
    query, passage, relevant = (record.get(key) for key in ("query", "passage", "relevant"))
    if not (isinstance(query, str) and isinstance(passage, str)) or not isinstance(relevant, bool | None):
        example = json.dumps({"query": "id", "passage": "id", "relevant": True})
        raise InputError(f"{where}: write {example}")
    return (query, passage), relevant
