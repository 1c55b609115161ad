"""Joins BEIR folders into one whose ids tell where each text came from: ``name/id``.

Does not know how training mixes them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from retriever.beir import find_qrels, read_corpus, read_query_lines
from retriever.beir_writer import new_dataset
from retriever.errors import InputError
from retriever.trec import read_qrels

SEPARATOR = "/"


@dataclass(frozen=True)
class JoinSummary:
    """What was written; ``judgements`` counts the lines of each split's qrels."""

    passages: int
    queries: int
    judgements: Mapping[str, int]


def join_datasets(folders: Mapping[str, Path], out: Path) -> JoinSummary:
    """Write the BEIR ``folders``, by the name that each is given, as the one data set ``out``.

    A split is the union of those of its name. Text that several of them hold stands in each one's name: a duplicate of
    a positive is never a negative, whichever name it has. Raises InputError for fewer than two folders, a name with a
    separator or white space, an existing ``out``, and for what reading a folder refuses.
    """
    if len(folders) < 2:
        raise InputError("a join needs at least two data sets")
    for name in folders:
        if not name or SEPARATOR in name or name.split() != [name]:
            raise InputError(f"{name!r}: a name of a data set has neither {SEPARATOR!r} nor white space")
    with new_dataset(out) as writer:
        for name, folder in folders.items():
            for passage in read_corpus(folder):
                writer.add_passage(f"{name}{SEPARATOR}{passage.id}", passage.title, passage.text, passage.metadata)
            for query in read_query_lines(folder):
                writer.add_query(f"{name}{SEPARATOR}{query.id}", query.text, query.metadata)
        found = {name: find_qrels(folder) for name, folder in folders.items()}
        splits = sorted({split for paths in found.values() for split in paths})
        judgements = {
            split: writer.write_qrels(
                split,
                (
                    (f"{name}{SEPARATOR}{query}", f"{name}{SEPARATOR}{passage}", relevance)
                    for name, paths in found.items()
                    if split in paths
                    for _, query, passage, relevance in read_qrels(paths[split])
                ),
            )
            for split in splits
        }
        return JoinSummary(writer.passages, writer.queries, judgements)


def dataset_of(text_id: str) -> str:
    """Return the name of the data set that an id of a join comes from. Raises InputError for an id without one."""
    name, separator, _ = text_id.partition(SEPARATOR)
    if not separator:
        raise InputError(f"id {text_id!r} names no data set; join them with `hone dataset join`")
    return name
