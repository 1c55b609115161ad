"""The ledger of judgements: appended JSON lines with their provenance, from which a broken-off run goes on.

Does not know which pairs are worth judging, nor what follows from a judgement.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from retriever.data import hash64
from retriever.durable import append_lines, read_lines
from retriever.errors import InputError
from retriever.protocols import Judge, Judgement, PairText

NEEDED: dict[str, type | tuple[type, ...]] = {
    "query": str,
    "passage": str,
    "texts": str,
    "judge": str,
    "fingerprint": str,
    "relevant": (bool, type(None)),
}
STORED = tuple(one.name for one in fields(Judgement))


@dataclass(frozen=True)
class Entry:
    """One line: a judgement with the pair and judge it belongs to, and the ``line`` as it was written."""

    query_id: str
    passage_id: str
    texts: str
    positive: str | None
    judge: str
    fingerprint: str
    judgement: Judgement
    line: Mapping[str, Any]

    @property
    def settled(self) -> bool:
        """Whether the pair need not be asked about again."""
        return not self.judgement.again

    def is_about(self, pair: PairText) -> bool:
        """Whether the texts that were judged, the positive's too where it was read, are those of ``pair``."""
        return self.texts == texts_digest(pair) and self.positive in (None, _digest(pair.positive))


def texts_digest(pair: PairText) -> str:
    """Return what identifies the two texts of ``pair``: a judgement on others says nothing of them."""
    return _digest(pair.query, pair.passage)


class Ledger:
    """All judgements of one file, ``entries`` in its order; each that is added is on the disk when ``add`` returns."""

    def __init__(self, path: Path, provenance: Mapping[str, Any]) -> None:
        """Read ``path``, if it is there; ``provenance`` goes beside each line that is added.

        Raises InputError naming the line for one of another form.
        """
        self._path = path
        self._provenance = dict(provenance)
        self._last: dict[tuple[str, str, str], Entry] = {}
        self.entries: list[Entry] = []
        for number, line in enumerate(read_lines(path), 1):
            self._take(_entry(line, f"{path}, line {number}"))
        self._before = len(self.entries)

    @property
    def added(self) -> Sequence[Entry]:
        """The entries that were added since the file was read, failures that were asked about again included."""
        return self.entries[self._before :]

    def __iter__(self) -> Iterator[Entry]:
        """Yield the last entry of each judge on each pair."""
        yield from self._last.values()

    def known(self, judge: Judge, pair: PairText) -> Judgement | None:
        """Return what ``judge`` said of ``pair`` as its texts are now, None if it must be asked (anew)."""
        entry = self._last.get((judge.fingerprint, pair.query_id, pair.passage_id))
        return entry.judgement if entry is not None and entry.settled and entry.is_about(pair) else None

    def add(self, judge: Judge, answers: Sequence[tuple[PairText, Judgement]]) -> None:
        """Append the ``answers`` of ``judge``."""
        lines = [self._line(judge, pair, judgement) for pair, judgement in answers]
        append_lines(self._path, lines)
        for line in lines:
            self._take(_entry(line, str(self._path)))

    def _line(self, judge: Judge, pair: PairText, judgement: Judgement) -> dict[str, Any]:
        given = {name: getattr(judgement, name) for name in STORED}
        line = {
            "query": pair.query_id,
            "passage": pair.passage_id,
            "relevant": given.pop("relevant"),
            "judge": judge.name,
            **{name: value for name, value in given.items() if value},
            "texts": texts_digest(pair),
            "fingerprint": judge.fingerprint,
            **judge.provenance,
            **self._provenance,
            "time": round(time.time(), 3),
        }
        if judge.reads_positive:
            line["positive"] = _digest(pair.positive)
        return line

    def _take(self, entry: Entry) -> None:
        self.entries.append(entry)
        self._last[entry.fingerprint, entry.query_id, entry.passage_id] = entry


def _digest(*texts: str) -> str:
    return format(hash64("\0".join(texts)), "016x")


def _entry(line: Any, where: str) -> Entry:
    if not isinstance(line, dict) or not all(isinstance(line.get(key, 0), kind) for key, kind in NEEDED.items()):
        raise InputError(f"{where}: no judgement of `hone relabel`; name another folder, or remove the line")
    judgement = Judgement(**{name: line[name] for name in STORED if name in line})
    pair = (line["query"], line["passage"], line["texts"], line.get("positive"))
    return Entry(*pair, line["judge"], line["fingerprint"], judgement, line)
