"""Makes a retrieval data set of installed Python packages: a docstring's first sentence asks for the code.

Does not know how Python source is read, how the folder is written or what is trained on it.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

from app.dataset_folder import check_target, publish
from app.near_duplicates import NearDuplicates
from app.python_definitions import Candidate, read_candidates
from app.python_sources import default_roots, find_packages, package_versions, source_files
from retriever.errors import InputError

SPLITS = ("train", "dev", "test")
KIND = "python"
MAX_FILES_PER_PACKAGE = 120
HELD_OUT_PACKAGES = 5


@dataclass(frozen=True)
class PythonDatasetConfig:
    """How many passages and queries a split; a package gives ``smallest`` to ``per_package`` of them.

    In a package of less than ``smallest`` documented definitions there is too little that could be mistaken for the
    answer: it is passed over.
    """

    passages: int = 3000
    train: int = 2000
    dev: int = 300
    test: int = 300
    per_package: int = 200
    seed: int = 13
    smallest: int = 50

    def __post_init__(self) -> None:
        """Raise InputError for numbers that no data set can have."""
        for name in ("train", "dev", "test"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} = {getattr(self, name)}: give 0 or more queries")
        if self.per_package < 1:
            raise InputError(f"per_package = {self.per_package}: give 1 or more passages")
        if self.distractors < 0 or self.passages < 1:
            raise InputError(
                f"passages = {self.passages}: the {self.train} + {self.dev} + {self.test} queries of train, "
                "dev and test need a passage each; give more passages or ask for fewer queries"
            )

    @property
    def distractors(self) -> int:
        """Passages that answer no query."""
        return self.passages - self.train - self.dev - self.test


@dataclass(frozen=True)
class PythonDatasetSummary:
    """Counts of a data set: queries and package names by split, what was dropped by reason, passages that were cut.

    ``dropped`` counts definitions, and files under "unparsable file" and "file not sampled". The reasons "no
    docstring" and "poor docstring" cost a definition its query alone: it may be a passage that answers none.
    """

    passages: int
    queries: dict[str, int]
    packages: dict[str, tuple[str, ...]]
    dropped: dict[str, int]
    shortened: int = 0


@dataclass(frozen=True)
class _Division:
    positives: dict[str, list[Candidate]]
    distractors: list[Candidate]

    def packages(self, split: str) -> tuple[str, ...]:
        own = {candidate.package for candidate in self.positives[split]}
        held_out = {candidate.package for name in ("dev", "test") for candidate in self.positives[name]}
        spare = {candidate.package for candidate in self.distractors} - held_out if split == "train" else set()
        return tuple(sorted(own | spare))


def write_python_dataset(
    out: Path,
    config: PythonDatasetConfig,
    roots: Sequence[Path] | None = None,
    progress: Callable[[int, int], None] | None = None,
    shorten: Callable[[str], str] | None = None,
) -> PythonDatasetSummary:
    """Write the BEIR folder ``out`` from the packages below ``roots`` and return its counts.

    The same packages give the same bytes, wherever they lie. ``roots`` default to the running environment and
    its standard library. ``progress`` receives the passages found and those wanted. ``out`` appears whole or
    not at all; a Python data set that is there already is replaced, or left alone where it is the same. ``shorten``
    cuts a passage to the length that is wanted; the summary counts what it cut.

    Raises InputError for any other non-empty ``out``, and for too little material, saying how much there is.
    """
    out = out.resolve()
    check_target(out, KIND)
    places = list(default_roots() if roots is None else roots)
    dropped: Counter[str] = Counter()
    cut: set[str] = set()

    def noting(candidate: Candidate) -> Candidate:
        text = candidate.text if shorten is None else shorten(candidate.text)
        if text == candidate.text:
            return candidate
        cut.add(candidate.id)
        return replace(candidate, text=text)

    division = _collect(places, config, dropped, progress or (lambda found, wanted: None), noting)
    answers = [candidate for split in SPLITS for candidate in division.positives[split]]
    summary = PythonDatasetSummary(
        passages=config.passages,
        shortened=sum(candidate.id in cut for candidate in answers + division.distractors),
        queries={split: len(division.positives[split]) for split in SPLITS},
        packages={split: division.packages(split) for split in SPLITS},
        dropped=dict(sorted(dropped.items())),
    )
    versions = package_versions(places, [name for split in SPLITS for name in summary.packages[split]])
    named = {split: {name: versions[name] for name in summary.packages[split]} for split in SPLITS}
    facts = {"kind": KIND, "config": asdict(config), **asdict(summary), "packages": named}
    publish(
        out,
        corpus={passage.id: passage.text for passage in answers + division.distractors},
        queries={f"q:{passage.id}": passage.query or "" for passage in answers},
        qrels={
            split: [(f"q:{passage.id}", passage.id) for passage in passages]
            for split, passages in division.positives.items()
        },
        facts=facts,
    )
    return summary


def _rank(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest()


def _collect(
    roots: Sequence[Path],
    config: PythonDatasetConfig,
    dropped: Counter[str],
    progress: Callable[[int, int], None],
    prepare: Callable[[Candidate], Candidate],
) -> _Division:
    """Divide the packages in seeded order, reading no more of them than it takes."""
    packages = find_packages(roots)
    order = sorted(packages, key=lambda name: _rank(config.seed, name))
    kept, asked = NearDuplicates(), set[str]()
    read_so_far: list[Candidate] = []

    @cache
    def read(name: str) -> list[Candidate]:
        found = _sample(source_files(packages[name]), config.seed, dropped)
        chosen = _choose(map(prepare, found), kept, asked, config.per_package, dropped)
        read_so_far.extend(chosen)
        return chosen

    def documented_in(name: str) -> int:
        return sum(candidate.query is not None for candidate in read(name))

    for spread in range(HELD_OUT_PACKAGES, 0, -1):
        large_enough = (name for name in order if documented_in(name) >= config.smallest)
        division = _divide(large_enough, read, config, spread, progress)
        if division is not None:
            dropped["not needed"] = len(read_so_far) - config.passages
            return division
    documented = sum(candidate.query is not None for candidate in read_so_far)
    raise InputError(
        f"passages = {config.passages}, train = {config.train}, dev = {config.dev}, test = {config.test}: "
        f"too little source; the {len(packages)} packages below {', '.join(map(str, roots))} hold "
        f"{len(read_so_far)} distinct passages, {documented} of them with a query, and no package may be in "
        f"two splits; ask for less, raise per_package = {config.per_package}, lower "
        f"smallest = {config.smallest} or install more packages"
    )


def _sample(files: dict[str, Path], seed: int, dropped: Counter[str]) -> list[Candidate]:
    """Read some files, chosen by hash; return their candidates by hash, those with a query first."""
    chosen = sorted(sorted(files, key=lambda module: _rank(seed, module))[:MAX_FILES_PER_PACKAGE])
    dropped["file not sampled"] += len(files) - len(chosen)
    found = [candidate for module in chosen for candidate in read_candidates(module, files[module], dropped)]
    return sorted(found, key=lambda candidate: (candidate.query is None, _rank(seed, candidate.id)))


def _choose(
    found: Iterable[Candidate], kept: NearDuplicates, asked: set[str], limit: int, dropped: Counter[str]
) -> list[Candidate]:
    """Return the first ``limit`` of ``found`` that are new to ``kept`` by text and to ``asked`` by query."""
    chosen: dict[str, Candidate] = {}
    for candidate in found:
        query = " ".join(re.findall(r"\w+", (candidate.query or "").casefold()))
        if len(chosen) == limit:
            dropped["package limit"] += 1
        elif candidate.id in chosen:
            dropped["redefinition"] += 1
        elif query in asked:
            dropped["duplicate query"] += 1
        elif not kept.add(candidate.text):
            dropped["near-duplicate"] += 1
        else:
            chosen[candidate.id] = candidate
            asked.update({query} - {""})
    return list(chosen.values())


def _divide(
    names: Iterator[str],
    read: Callable[[str], list[Candidate]],
    config: PythonDatasetConfig,
    spread: int,
    progress: Callable[[int, int], None],
) -> _Division | None:
    """Fill test, dev and train from the packages in ``order``; None where they do not suffice.

    Each held-out split takes at most its ``spread``-th part from one package; what else its packages hold are the
    first distractors, so that a query meets its own package's other passages, as in a real search.
    """
    left: list[Candidate] = []
    positives = {"test": _take(names, read, config.test, spread, left), "dev": []}
    positives["dev"] = _take(names, read, config.dev, spread, left)
    held_out = len(positives["test"]) + len(positives["dev"])
    asking: list[Candidate] = []
    silent: list[Candidate] = []
    while len(asking) < config.train or len(left + asking + silent) < config.train + config.distractors:
        progress(held_out + min(len(asking) + len(silent), config.passages - held_out), config.passages)
        if (name := next(names, None)) is None:
            return None
        for candidate in read(name):
            (silent if candidate.query is None else asking).append(candidate)
    if held_out < config.test + config.dev:
        return None
    asking.sort(key=lambda candidate: _rank(config.seed, candidate.id))
    left.sort(key=lambda candidate: _rank(config.seed, candidate.id))
    spare = left + sorted(asking[config.train :] + silent, key=lambda candidate: _rank(config.seed, candidate.id))
    progress(config.passages, config.passages)
    return _Division(positives | {"train": asking[: config.train]}, spare[: config.distractors])


def _take(
    names: Iterator[str], read: Callable[[str], list[Candidate]], wanted: int, spread: int, left: list[Candidate]
) -> list[Candidate]:
    """Return ``wanted`` documented candidates, or what there is; add what else their packages hold to ``left``."""
    taken: list[Candidate] = []
    while len(taken) < wanted and (name := next(names, None)) is not None:
        asking = [candidate for candidate in read(name) if candidate.query is not None]
        part = asking[: min(max(wanted // spread, 1), wanted - len(taken))]
        left += [candidate for candidate in read(name) if candidate not in part]
        taken += part
    return taken
