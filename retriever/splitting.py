"""Splits the long documents of a BEIR folder into passages, at the ends of sentences where possible.

Does not know tokenizers: lengths are counted in words between white space.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from retriever.beir import find_qrels, read_corpus, read_query_lines
from retriever.beir_writer import new_dataset
from retriever.errors import InputError
from retriever.trec import read_qrels

WORD = re.compile(r"\S+")
SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’»)\]]*$")


@dataclass(frozen=True)
class SplitSummary:
    """What was read and written; ``judgements`` counts the lines of each split's qrels after the copying."""

    documents: int
    passages: int
    queries: int
    judgements: Mapping[str, int]


def split_text(text: str, words: int, overlap: int) -> Iterator[str]:
    """Yield slices of ``text`` of at most ``words`` words that repeat at most ``overlap`` words of the one before.

    A slice ends at the last end of a sentence in its second half, if there is one beyond the overlap, and else after
    ``words`` words; the next one begins with the first sentence that starts within the last ``overlap`` words, or
    else exactly so many words back. Text of a script that has no spaces counts as one word and stays whole.
    """
    spans = [match.span() for match in WORD.finditer(text)]
    ends = {at for at, (start, stop) in enumerate(spans, 1) if SENTENCE_END.search(text[start:stop])}
    start = 0
    while spans:
        last = min(start + words, len(spans))
        shortest = start + max(overlap, words // 2)
        stop = last if last == len(spans) else next((at for at in range(last, shortest, -1) if at in ends), last)
        yield text[spans[start][0] : spans[stop - 1][1]]
        if stop == len(spans):
            return
        start = next((at for at in range(stop - overlap, stop) if at in ends), stop - overlap)


def split_documents(data: Path, out: Path, words: int = 120, overlap: int = 20) -> SplitSummary:
    """Write the BEIR folder ``data`` as ``out`` with each document split into the passages ``id#0``, ``id#1`` …

    Titles, metadata and queries are kept. A judgement of a document is copied to *every* passage of it, also to those
    that do not answer the query: recall then counts passages, and a copied positive may be a weak one. A judgement of a
    document that is not there is kept as it is, for the reading of ``out`` to report.

    Raises InputError for lengths that cannot be, for an existing ``out``, and for what reading ``data`` refuses.
    """
    if not 0 <= overlap < words:
        raise InputError(f"words = {words}, overlap = {overlap}: the overlap must be 0 or more and below words")
    with new_dataset(out) as writer:
        pieces: dict[str, int] = {}
        for one in read_corpus(data):
            if one.id in pieces:
                raise InputError(f"{data}: line {one.number} of the corpus: duplicate id {one.id!r}; give each its own")
            slices = list(split_text(one.text, words, overlap)) or [""]
            for number, piece in enumerate(slices):
                writer.add_passage(f"{one.id}#{number}", one.title, piece, one.metadata)
            pieces[one.id] = len(slices)
        for query in read_query_lines(data):
            writer.add_query(query.id, query.text, query.metadata)
        judgements = {
            split: writer.write_qrels(split, _copied(path, pieces)) for split, path in find_qrels(data).items()
        }
        return SplitSummary(len(pieces), writer.passages, writer.queries, judgements)


def _copied(path: Path, pieces: Mapping[str, int]) -> Iterator[tuple[str, str, int]]:
    for _, query, document, relevance in read_qrels(path):
        names = [f"{document}#{number}" for number in range(pieces.get(document, 0))]
        for name in names or [document]:
            yield query, name, relevance
