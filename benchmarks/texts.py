"""Real texts of a BEIR folder, the same for every contestant: a fixed sample, handed over as a JSON file.

Does not know what is done with them.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path

from retriever.beir import read_passages, read_queries
from retriever.data import passage_text

SEED = 13


def sample_passages(folder: Path, count: int) -> list[str]:
    """Return ``count`` passages as an encoder reads them, drawn with a fixed seed. Raises InputError for bad data."""
    return _sample([passage_text(title, text) for _, _, title, text in read_passages(folder)], count)


def sample_queries(folder: Path, count: int) -> list[str]:
    """Return ``count`` queries, drawn with a fixed seed. Raises InputError for bad data."""
    return _sample([text for _, _, text in read_queries(folder)], count)


def _sample(texts: Sequence[str], count: int) -> list[str]:
    if count > len(texts):
        raise ValueError(f"{count} texts asked for, but the data has {len(texts)}")
    return random.Random(SEED).sample(texts, count)


def hand_over(folder: Path, name: str, texts: object) -> str:
    """Write ``texts``, lists of strings, for contestants to read with ``json.load``; return the path."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps(texts))
    return str(path)
