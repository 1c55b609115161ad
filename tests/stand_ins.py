"""Stand-ins that tests share: an encoder without torch and a tiny data set. They do not know pytest."""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from retriever.data import Corpus
from retriever.ingest import ingest_corpus
from retriever.protocols import Fingerprints, FloatArray, Progress, Side, silent
from retriever.store import Store

WORDS = [a + b for a in "ba be bi bo bu da de di do du".split() for b in "ka ke ki ko ku la le li lo lu".split()]


class HashEncoder:
    """A bag of hashed words, normalised: texts that share words are near, without any weights.

    ``seed`` changes vectors and fingerprints, as another checkpoint would.
    """

    def __init__(self, dimensions: int = 32, seed: int = 0) -> None:
        self.dimensions = dimensions
        self.seed = seed
        self.encoded_passages = 0
        self.cut_texts: dict[Side, int] = {"query": 0, "passage": 0}
        self.computed_by = "hashing"
        self.alike = True
        self.pooling = "mean"
        self._ids: dict[str, int] = {}
        self._vocabulary: list[str] = []
        name = f"hash-{dimensions}-{seed}"
        self.fingerprints = Fingerprints(f"{name}-passage", f"{name}-query", name)

    def _word(self, word: str) -> FloatArray:
        digest = hashlib.blake2b(f"{self.seed}:{word}".encode(), digest_size=8).digest()
        generator = np.random.default_rng(int.from_bytes(digest, "little"))
        return generator.standard_normal(self.dimensions).astype(np.float32)

    def max_length(self, side: Side) -> int:
        """Return how many words of a text are read when it comes as tokens."""
        return 512

    def tokenize(self, side: Side, texts: Sequence[str]) -> tuple[list[list[int]], int]:
        """Return a number for each word, and how many texts were longer than 512 words."""
        read = [[self._id(word) for word in text.lower().split()] for text in texts]
        return [ids[:512] for ids in read], sum(len(ids) > 512 for ids in read)

    def _id(self, word: str) -> int:
        if word not in self._ids:
            self._ids[word] = len(self._vocabulary)
            self._vocabulary.append(word)
        return self._ids[word]

    def encode_tokens(self, side: Side, token_ids: Sequence[Sequence[int]], progress: Progress = silent) -> FloatArray:
        """Return float32 [n, dimensions]."""
        texts = [" ".join(self._vocabulary[one] for one in ids) for ids in token_ids]
        return self.encode_passages(texts, progress) if side == "passage" else self.encode_queries(texts, progress)

    def _encode(self, texts: Sequence[str], progress: Progress) -> FloatArray:
        vectors = np.zeros((len(texts), self.dimensions), np.float32)
        for row, text in enumerate(texts):
            for word in text.lower().split():
                vectors[row] += self._word(word)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        progress(len(texts), len(texts))
        unit: FloatArray = vectors / np.maximum(norms, 1e-9)
        return unit

    def encode_queries(self, texts: Sequence[str], progress: Progress = silent) -> FloatArray:
        """Return float32 [n, dimensions]."""
        return self._encode(texts, progress)

    def encode_passages(self, texts: Sequence[str], progress: Progress = silent) -> FloatArray:
        """Return float32 [n, dimensions]."""
        self.encoded_passages += len(texts)
        return self._encode(texts, progress)


class OverlapRanker:
    """Scores a pair by the words that it shares, as log-odds."""

    def __init__(self) -> None:
        self.fingerprint = "overlap"
        self.probable = False

    def score(self, queries: Sequence[str], passages: Sequence[str], progress: Progress = silent) -> FloatArray:
        """Return float32 [n]."""
        scores = self.score_tokens(self.tokenize(queries, passages)[0])
        progress(len(queries), len(queries))
        return scores

    def tokenize(
        self, queries: Sequence[str], passages: Sequence[str]
    ) -> tuple[list[tuple[list[str], list[str]]], list[int], int]:
        """Return the words of both texts, how many they are, and how many pairs were cut: beyond 512 words."""
        whole = [(a.lower().split(), b.lower().split()) for a, b in zip(queries, passages, strict=True)]
        pairs = [(a[:512], b[: max(0, 512 - len(a))]) for a, b in whole]
        return (
            pairs,
            [len(a) + len(b) for a, b in pairs],
            sum(one != read for one, read in zip(whole, pairs, strict=True)),
        )

    def score_tokens(self, pairs: Sequence[tuple[list[str], list[str]]]) -> FloatArray:
        """Return float32 [n]."""
        return np.array([len({*a} & {*b}) - len({*b}) / 100 for a, b in pairs], np.float32)


def write_tiny_data(folder: Path, passages: int = 60, queries: int = 40, seed: int = 7) -> Path:
    """Write a BEIR folder of random words: query i shares words with passage i, its only positive.

    The first half of the queries is train, then come dev and test, a quarter each.
    """
    generator = random.Random(seed)
    (folder / "qrels").mkdir(parents=True)
    texts = [generator.choices(WORDS, k=12) for _ in range(passages)]
    write_json_lines(
        folder / "corpus.jsonl",
        [{"_id": f"p{i}", "title": words[0], "text": " ".join(words[1:])} for i, words in enumerate(texts)],
    )
    asked = [{"_id": f"q{i}", "text": " ".join(generator.sample(texts[i], 4))} for i in range(queries)]
    write_json_lines(folder / "queries.jsonl", asked)
    bounds = {
        "train": (0, queries // 2),
        "dev": (queries // 2, queries * 3 // 4),
        "test": (queries * 3 // 4, queries),
    }
    for split, (start, end) in bounds.items():
        lines = ["query-id\tcorpus-id\tscore", *(f"q{i}\tp{i}\t1" for i in range(start, end))]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def write_json_lines(path: Path, records: Sequence[Mapping[str, object]]) -> None:
    """Write one JSON object a line."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def tiny_store(folder: Path, data: Path) -> tuple[Store, Corpus]:
    """Return a new store in ``folder`` that holds the corpus of ``data``."""
    store = Store(folder, create=True)
    return store, Corpus(ingest_corpus(store, data))
