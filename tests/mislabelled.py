"""Data sets whose labels were made wrong on purpose, and how many of them an audit finds. It does not know pytest."""

import random
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path


def mislabel(data: Path, share: float, seed: int = 0) -> dict[str, tuple[str, str]]:
    """Give ``share`` of the training queries of a BEIR folder another's positive; return {query: (true, wrong)}."""
    path = data / "qrels" / "train.tsv"
    head, *lines = path.read_text().splitlines()
    pairs = [line.split("\t") for line in lines]
    generator = random.Random(seed)
    swapped: dict[str, tuple[str, str]] = {}
    for place in generator.sample(range(len(pairs)), round(share * len(pairs))):
        query, true, _ = pairs[place]
        wrong = generator.choice([one[1] for one in pairs if one[1] != true])
        swapped[query] = (true, wrong)
        pairs[place][1] = wrong
    path.write_text("\n".join([head, *("\t".join(pair) for pair in pairs)]) + "\n")
    return swapped


@dataclass(frozen=True)
class Found:
    """How much of what is ``suspected`` is ``wrong``, and how much of what is wrong is suspected."""

    precision: float
    recall: float
    suspected: int
    wrong: int


def found(suspected: Collection[str], wrong: Collection[str]) -> Found:
    """Return precision and recall of ``suspected`` queries."""
    both = len({*suspected} & {*wrong})
    return Found(both / max(len({*suspected}), 1), both / len({*wrong}), len({*suspected}), len({*wrong}))
