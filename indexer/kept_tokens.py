"""Token ids kept from one checkpoint to the next: a file a block of texts, written whole and checked.

Does not know tokenizers: what makes ids differ is in an encoder's fingerprints.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from indexer.shards import sidecar, write_checked
from retriever.data import BLOCK_ROWS, Corpus
from retriever.protocols import Encoder, FloatArray, IntArray, Progress, Side, TokenKeeper
from retriever.tokens import Tokens, joined


def encode_texts(
    encoder: Encoder,
    side: Side,
    texts: Sequence[str],
    cache: Path,
    name: str,
    progress: Progress,
    warn: Callable[[str], None],
) -> FloatArray:
    """Return float32 [len(texts), dimensions], from the token ids in ``cache`` where they are, else from the texts.

    ``name`` identifies the texts; their ids are kept under it for the next encoder with the same tokenizer, prompt and
    maximum length, if ``encoder`` is a TokenKeeper.
    """
    if not isinstance(encoder, TokenKeeper):
        encode = encoder.encode_passages if side == "passage" else encoder.encode_queries
        return encode(texts, progress)
    path = tokens_path(cache, encoder, side, name)
    kept = read_tokens(path, len(texts), warn)
    if kept is not None:
        return encoder.encode_kept(side, kept, progress)
    vectors, made = encoder.encode_keeping(side, texts, progress)
    write_tokens(path, made)
    return vectors


def encode_rows(
    encoder: Encoder, corpus: Corpus, rows: IntArray, cache: Path, progress: Progress, warn: Callable[[str], None]
) -> FloatArray:
    """Return float32 [len(rows), dimensions] of the passages at ``rows``, ascending.

    From the ids that ``encode_texts`` kept of each block of the corpus that ``rows`` touch, if all are there.
    """
    if isinstance(encoder, TokenKeeper):
        kept = _kept_rows(encoder, corpus, rows, cache, warn)
        if kept is not None:
            return encoder.encode_kept("passage", kept, progress)
    return encoder.encode_passages(corpus.texts(rows), progress)


def _kept_rows(
    encoder: TokenKeeper, corpus: Corpus, rows: IntArray, cache: Path, warn: Callable[[str], None]
) -> Tokens | None:
    parts = []
    for block in np.unique(rows // BLOCK_ROWS).tolist():
        first = block * BLOCK_ROWS
        path = tokens_path(cache, encoder, "passage", corpus.block_sha256[block])
        tokens = read_tokens(path, min(BLOCK_ROWS, len(corpus) - first), warn)
        if tokens is None:
            return None
        start, end = np.searchsorted(rows, (first, first + BLOCK_ROWS))
        parts.append(tokens.take(rows[start:end] - first))
    return joined(parts)


def tokens_path(cache: Path, encoder: Encoder, side: Side, name: str) -> Path:
    """Return where ``cache`` has the ids that ``encoder`` would make of the texts ``name``."""
    fingerprint: str = getattr(encoder.fingerprints, f"{side}_tokens")
    return cache / fingerprint / f"{name}.safetensors"


def write_tokens(path: Path, tokens: Tokens) -> None:
    """Write the ids whole, then their checksum beside them: a file without one was never finished."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_checked(path, save(asdict(tokens)))


def read_tokens(path: Path, texts: int, warn: Callable[[str], None]) -> Tokens | None:
    """Return the ids of so many ``texts``, None if they were never finished; altered ones are said through ``warn``."""
    try:
        expected = sidecar(path).read_text().strip()
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    if hashlib.sha256(data).hexdigest() != expected:
        warn(f"{path}: altered since it was written; its texts are tokenized anew")
        return None
    try:
        tokens = Tokens(**load(data))
    except (SafetensorError, TypeError) as error:
        warn(f"{path}: unreadable ({error}); its texts are tokenized anew")
        return None
    if (len(tokens.ids), len(tokens), len(tokens.cut)) != (tokens.lengths.sum(), texts, texts):
        warn(f"{path}: holds {len(tokens)} texts where {texts} belong; they are tokenized anew")
        return None
    return tokens
