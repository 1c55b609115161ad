"""Numbers of things and lists of their names, as a person says them: one pair, two pairs.

Does not know what is counted.
"""

from collections.abc import Sequence


def counted(number: int, one: str, many: str) -> str:
    """Return ``number`` before the words that go with it, nouns and verbs: counted(1, "pair is", "pairs are")."""
    return f"{number:,} {one if number == 1 else many}"


def the_first(names: Sequence[str], most: int = 5) -> str:
    """Return the first ``most`` of ``names`` as a list, and "…" where there are more."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
