"""Turns pairs and triplets of a table, or TREC files, into a BEIR folder: the one format that the rest of hone reads.

Does not know how tables are stored, nor corpora, encoders or training.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from retriever.beir import read_passage_lines
from retriever.beir_writer import new_dataset
from retriever.carving import places
from retriever.data import hash64, passage_text
from retriever.deduplication import Judgements, UniqueTexts
from retriever.document_rows import DocumentColumns, read_document_rows
from retriever.errors import InputError
from retriever.pair_rows import Columns, PairRow, fitting_columns, read_pair_rows
from retriever.tables import Table, open_table
from retriever.trec import numbered_lines, read_qrels

Judged = Sequence[tuple[int, int, int]]


@dataclass(frozen=True)
class Splits:
    """Where splits come from: one of the source's own, by name; for dev and test also a fraction carved off train.

    Queries that share a positive stay together when they are carved. 0 makes no such split.
    """

    train: str = "train"
    dev: str | float = 0.0
    test: str | float = 0.0

    def __post_init__(self) -> None:
        """Raise InputError for fractions that leave nothing to train."""
        if any(not 0 <= part < 1 for part in (*self.carved.values(), sum(self.carved.values()))):
            raise InputError(f"dev = {self.dev}, test = {self.test}: fractions must be 0 or more and below 1 in all")

    @property
    def own(self) -> Mapping[str, str]:
        """The source's split that each split is read from."""
        given = {"train": self.train, "dev": self.dev, "test": self.test}
        return {split: name for split, name in given.items() if isinstance(name, str)}

    @property
    def carved(self) -> Mapping[str, float]:
        """The fractions that are carved off train."""
        given = {"dev": self.dev, "test": self.test}
        return {split: part for split, part in given.items() if not isinstance(part, str) and part != 0}


TRAIN_ONLY = Splits()


@dataclass(frozen=True)
class ImportSummary:
    """What an import wrote: passages and the judged queries of each split; and how much it ``dropped``, by reason."""

    passages: int
    queries: Mapping[str, int]
    dropped: Mapping[str, int]


def import_pairs(
    source: str,
    out: Path,
    columns: Columns | None = None,
    splits: Splits = TRAIN_ONLY,
    subset: str | None = None,
    documents: Path | None = None,
) -> ImportSummary:
    """Write the (query, positives, negatives) rows of ``source`` as the BEIR folder ``out``.

    ``source`` is a file, a folder or a hub id, as ``open_table`` tells. Texts that are equal become one passage, or
    one query with all the positives of its rows. Ids are the given ones (the first of a text that has several),
    else the hash of the text. Positives get relevance 1, negatives 0. Without ``columns`` the first of LAYOUTS that
    fits is taken. ``documents``, lines like those of corpus.jsonl, are passages under their own ids, whether a pair
    names them or not; a pair's passage of the same text is such a document.

    Raises InputError, naming the columns there are, for a column that is not there; naming the row, for a value
    that is no text and an id of two texts; for an existing ``out`` and for a split that would be empty.
    """
    with new_dataset(out) as writer:
        dropped: Counter[str] = Counter()
        passages = UniqueTexts("passage", writer.add_passage, dropped)
        queries = UniqueTexts("query", lambda name, _, text: writer.add_query(name, text), dropped)
        if documents is not None:
            _add_documents(documents, passages, dropped)
        judged: dict[str, Judged] = {}
        for split, name in splits.own.items():
            table = open_table(source, name, subset)
            rows = read_pair_rows(table, fitting_columns(table, columns), dropped)
            judged[split] = _gather(rows, queries, passages).settled(dropped)
        for split, found in _carve(judged, splits.carved).items():
            if not found:
                why = ", ".join(f"{reason}: {count}" for reason, count in (+dropped).items()) or "too few rows"
                raise InputError(f"{source}: no pair for the split {split!r} ({why})")
            judged[split] = found
            writer.write_qrels(split, ((queries.ids[q], passages.ids[p], relevance) for q, p, relevance in found))
        asked = {split: len({query for query, _, _ in found}) for split, found in judged.items()}
        return ImportSummary(writer.passages, asked, dict(+dropped))


def _add_documents(path: Path, passages: UniqueTexts, dropped: Counter[str]) -> None:
    def on_empty(number: int, name: str) -> None:
        dropped["document without a text"] += 1

    for line in read_passage_lines(path, on_empty):
        title, text = line.title.strip(), line.text.strip()
        passages.add(f"{path}:{line.number}", text or title, line.id, title if text else "")


def _gather(rows: Iterator[PairRow], queries: UniqueTexts, passages: UniqueTexts) -> Judgements:
    judged = Judgements()
    for row in rows:
        query = queries.add(row.place, row.query, row.query_id)
        for passage_id, title, text in row.positives:
            judged.add(query, passages.add(row.place, text, passage_id, title), 1)
        for text in row.negatives:
            judged.add(query, passages.add(row.place, text), 0)
    return judged


def _carve(judged: Mapping[str, Judged], fractions: Mapping[str, float]) -> dict[str, Judged]:
    """Move queries from train to the splits that ``fractions`` name."""
    positives: dict[int, list[int]] = {}
    for query, passage, relevance in judged["train"]:
        if relevance > 0:
            positives.setdefault(query, []).append(passage)
    split_of = {}
    for query, place in places(positives).items():
        for split, fraction in fractions.items():
            if 0 <= place < fraction:
                split_of[query] = split
            place -= fraction
    parts: dict[str, list[tuple[int, int, int]]] = {split: [] for split in ("train", *fractions)}
    for row in judged["train"]:
        parts[split_of.get(row[0], "train")].append(row)
    return {**judged, **parts}


def import_documents(table: Table, out: Path, columns: DocumentColumns) -> ImportSummary:
    """Write the documents of ``table`` as the corpus of the BEIR folder ``out``, which has no queries.

    Where no column has ids they are hashes of the texts, and a text that comes again is dropped and counted. Given ids
    are not compared here: reading ``out`` names one that comes twice. Raises InputError like ``read_document_rows``,
    for a table that gives nothing and for an existing ``out``.
    """
    dropped: Counter[str] = Counter()
    with new_dataset(out) as writer:
        seen: set[int] = set()
        for row in read_document_rows(table, columns, dropped):
            key = hash64(passage_text(row.title, row.text))
            if row.id is None and key in seen:
                dropped["document that is there already"] += 1
                continue
            seen.add(key)
            writer.add_passage(f"{key:016x}" if row.id is None else row.id, row.title, row.text, row.metadata)
        if not writer.passages:
            raise InputError(f"{table.name}: no document has a text")
        return ImportSummary(writer.passages, {}, dict(+dropped))


def import_trec(corpus: Path, queries: Path, qrels: Mapping[str, Path], out: Path) -> ImportSummary:
    """Write TREC files as the BEIR folder ``out``: ``id<TAB>text`` lines and judgements by split, plain or gzipped.

    Lines without a text are dropped and counted. Ids are not compared here: reading ``out`` names an id
    that comes twice and a judgement of one that is not there.

    Raises InputError naming file and line for a line of another form, and for an existing ``out``.
    """
    with new_dataset(out) as writer:
        dropped: Counter[str] = Counter()
        for name, text in _read_tsv(corpus, "passage", dropped):
            writer.add_passage(name, "", text)
        for name, text in _read_tsv(queries, "query", dropped):
            writer.add_query(name, text)
        asked: dict[str, set[str]] = {split: set() for split in qrels}
        for split, path in qrels.items():
            writer.write_qrels(split, _noting_queries(read_qrels(path), asked[split]))
        return ImportSummary(writer.passages, {split: len(ids) for split, ids in asked.items()}, dict(+dropped))


def _noting_queries(rows: Iterator[tuple[int, str, str, int]], seen: set[str]) -> Iterator[tuple[str, str, int]]:
    for _, query, passage, relevance in rows:
        seen.add(query)
        yield query, passage, relevance


def _read_tsv(path: Path, what: str, dropped: Counter[str]) -> Iterator[tuple[str, str]]:
    for number, line in numbered_lines(path):
        try:
            name, tab, text = (part.strip(" ") for part in line.decode().partition("\t"))
        except UnicodeDecodeError as error:
            raise InputError(f"{path}:{number}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
        if not (name and tab) or "\t" in text:
            raise InputError(f"{path}:{number}: expected an id, a tab and a text without tabs")
        if text:
            yield name, text
        else:
            dropped[f"{what} without a text"] += 1
