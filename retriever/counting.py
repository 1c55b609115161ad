"""Numbers of things as a person says them: one pair, two pairs.

Does not know what is counted.
"""


def counted(number: int, one: str, many: str) -> str:
    """Return ``number`` before the words that go with it, nouns and verbs: counted(1, "pair is", "pairs are")."""
    return f"{number:,} {one if number == 1 else many}"
