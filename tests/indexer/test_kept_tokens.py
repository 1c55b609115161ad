import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from indexer.encode import encode_corpus, remembering_queries
from indexer.kept_tokens import encode_rows, read_tokens, tokens_path, write_tokens
from indexer.shards import drop_unused, sidecar
from retriever.data import BLOCK_ROWS, Corpus
from retriever.durable import write_atomic
from retriever.protocols import FloatArray, Progress, Side, silent
from retriever.store import Store
from retriever.tokens import Tokens
from tests.indexer.planted import QuickEncoder

READ = 10
"""Words that a KeepingEncoder reads of a text; the tiny data's have 12."""
SHARED: dict[str, int] = {}
"""One number a word for all KeepingEncoders, as if they had one tokenizer."""


class KeepingEncoder(QuickEncoder):
    """A QuickEncoder whose tokens may be kept; ``tokenized`` counts the texts that it had to split itself."""

    def __init__(self, seed: int = 0, tokens: str = "tokens-a") -> None:
        super().__init__(seed=seed)
        self.fingerprints = replace(self.fingerprints, passage_tokens=tokens, query_tokens=f"{tokens}-q")
        self.tokenized = 0
        self.cut = 0

    def encode_keeping(
        self, side: Side, texts: Sequence[str], progress: Progress = silent
    ) -> tuple[FloatArray, Tokens]:
        """Return float32 [n, dimensions] and the texts' tokens."""
        self.tokenized += len(texts)
        words = [text.lower().split() for text in texts]
        ids = [[SHARED.setdefault(word, len(SHARED)) for word in read[:READ]] for read in words]
        tokens = Tokens.of(ids, [len(read) > READ for read in words])
        return self.encode_kept(side, tokens, progress), tokens

    def encode_kept(self, side: Side, tokens: Tokens, progress: Progress = silent) -> FloatArray:
        """Return float32 [n, dimensions]."""
        self.cut += int(tokens.cut.sum())
        known = list(SHARED)
        texts = [" ".join(known[one] for one in ids) for ids in tokens.split()]
        return (
            super().encode_passages(texts, progress) if side == "passage" else super().encode_queries(texts, progress)
        )

    def encode_passages(self, texts: Sequence[str], progress: Progress = silent) -> FloatArray:
        """Return float32 [n, dimensions]."""
        return self.encode_keeping("passage", texts, progress)[0]

    def encode_queries(self, texts: Sequence[str], progress: Progress = silent) -> FloatArray:
        """Return float32 [n, dimensions]."""
        return self.encode_keeping("query", texts, progress)[0]


def no_warning(message: str) -> None:
    raise AssertionError(message)


def vectors(
    encoder: KeepingEncoder, corpus: Corpus, cache: Path, warn: Callable[[str], None] = no_warning
) -> FloatArray:
    return encode_corpus(encoder, corpus, cache, silent, warn).gather(np.arange(len(corpus)))


def test_another_checkpoint_tokenizes_nothing_again(wide: tuple[Store, Corpus], tmp_path: Path) -> None:
    store, corpus = wide
    first, second, alone = KeepingEncoder(), KeepingEncoder(seed=1), KeepingEncoder(seed=1)
    vectors(first, corpus, store.embeddings)
    found = vectors(second, corpus, store.embeddings)
    np.testing.assert_array_equal(found, vectors(alone, corpus, tmp_path / "other"))
    assert (first.tokenized, second.tokenized, alone.tokenized) == (9000, 0, 9000)
    assert second.cut == alone.cut == 9000, "what was cut is counted as if it were read again"


def test_what_makes_other_ids_shares_none(tiny: tuple[Store, Corpus]) -> None:
    store, corpus = tiny
    vectors(KeepingEncoder(), corpus, store.embeddings)
    other = KeepingEncoder(seed=1, tokens="tokens-b")
    vectors(other, corpus, store.embeddings)
    assert other.tokenized == 60
    assert {path.name for path in store.embeddings.glob("tokens-*")} == {"tokens-a", "tokens-b"}


def files(store: Store, corpus: Corpus) -> list[Path]:
    return [
        tokens_path(store.embeddings, KeepingEncoder(), "passage", corpus.block_sha256[block]) for block in range(3)
    ]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 0xFF
    path.write_bytes(data)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def unfinished(path: Path) -> None:
    sidecar(path).unlink()


@pytest.mark.parametrize(("harm", "said"), [(flip, 1), (cut_short, 1), (unfinished, 0), (Path.unlink, 0)])
def test_a_file_that_is_not_whole_is_made_again(
    wide: tuple[Store, Corpus], harm: Callable[[Path], None], said: int
) -> None:
    store, corpus = wide
    vectors(KeepingEncoder(), corpus, store.embeddings)
    path = files(store, corpus)[1]
    before = path.read_bytes()
    harm(path)
    second, warnings = KeepingEncoder(seed=1), list[str]()
    found = vectors(second, corpus, store.embeddings, warnings.append)
    np.testing.assert_array_equal(found, vectors(second, corpus, store.root / "other"))
    assert second.tokenized == BLOCK_ROWS + 9000
    assert len(warnings) == said and all(str(path) in one and "tokenized anew" in one for one in warnings)
    assert path.read_bytes() == before, "and written as it was"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"something else", "unreadable"),
        (None, "holds 3 texts where 2 belong"),
    ],
)
def test_a_whole_file_of_something_else_is_refused(tmp_path: Path, content: bytes | None, why: str) -> None:
    path = tmp_path / "a-00000.safetensors"
    write_tokens(path, Tokens.of([[1], [2, 3], []], [False] * 3))
    if content is not None:
        write_atomic(path, content)
        write_atomic(sidecar(path), hashlib.sha256(content).hexdigest().encode())
    said: list[str] = []
    assert read_tokens(path, 2, said.append) is None
    assert len(said) == 1 and why in said[0]


def test_some_rows_take_the_ids_of_their_blocks(wide: tuple[Store, Corpus]) -> None:
    store, corpus = wide
    rows = np.array([0, 5, BLOCK_ROWS - 1, BLOCK_ROWS, 8192, 8999], np.int32)
    before, after = KeepingEncoder(), KeepingEncoder()
    expected = encode_rows(before, corpus, rows, store.embeddings, silent, no_warning)
    assert before.tokenized == len(rows), "nothing is kept yet"
    vectors(KeepingEncoder(seed=1), corpus, store.embeddings)
    found = encode_rows(after, corpus, rows, store.embeddings, silent, no_warning)
    np.testing.assert_array_equal(found, expected)
    assert after.tokenized == 0 and after.cut == before.cut == len(rows)
    unfinished(files(store, corpus)[2])
    np.testing.assert_array_equal(encode_rows(after, corpus, rows, store.embeddings, silent, no_warning), expected)
    assert after.tokenized == len(rows)


def test_mined_queries_are_tokenized_once(tmp_path: Path) -> None:
    first, second = KeepingEncoder(), KeepingEncoder(seed=1)
    texts = ["b a", "a", "c"]
    remembering_queries(first, tmp_path, no_warning)(texts)
    found = remembering_queries(second, tmp_path, no_warning)(texts)
    assert (first.tokenized, second.tokenized) == (3, 0)
    np.testing.assert_array_equal(found, KeepingEncoder(seed=1).encode_queries(texts))
    remembering_queries(second, tmp_path, no_warning)(texts[::-1])
    assert second.tokenized == 3


def test_ids_live_as_long_as_a_generation_names_them(tiny: tuple[Store, Corpus]) -> None:
    store, corpus = tiny
    used, other = KeepingEncoder(tokens="tokens-a"), KeepingEncoder(seed=1, tokens="tokens-b")
    for encoder in (used, other):
        vectors(encoder, corpus, store.embeddings)
        remembering_queries(encoder, store.embeddings, no_warning)(["a"])
    with store.generations.stage(parents={}) as draft:
        draft.facts.update(used.fingerprints.as_facts())
    assert {"tokens-b", "tokens-b-q"} < {*drop_unused(store)}
    assert {path.name for path in store.embeddings.glob("tokens-*")} == {"tokens-a", "tokens-a-q"}


def test_an_encoder_without_tokens_keeps_none(tiny: tuple[Store, Corpus]) -> None:
    store, corpus = tiny
    encode_corpus(QuickEncoder(), corpus, store.embeddings, silent, no_warning)
    assert list(store.embeddings.rglob("*.safetensors")) == []
    assert "passage_tokens_fingerprint" not in QuickEncoder().fingerprints.as_facts()
