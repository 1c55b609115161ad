import random

from app.near_duplicates import NearDuplicates


def test_four_fifths_is_the_line() -> None:
    words = [f"w{number}" for number in range(20)]
    kept = NearDuplicates()
    assert kept.add(" ".join(words))  # 18 triples
    assert not kept.add("  ".join(words))
    assert not kept.add(" ".join([*words, "x"])), "18 of 19 triples are shared"
    assert not kept.add(" ".join(words[:18])), "16 of 18 triples are shared"
    assert kept.add(" ".join(words[:16])), "14 of 18 triples are shared"


def test_a_refused_text_leaves_no_trace() -> None:
    words = [f"w{number}" for number in range(40)]
    kept = NearDuplicates()
    assert kept.add(" ".join(words))
    assert not kept.add(" ".join(words[4:])), "34 of 38 triples are shared with the first"
    assert kept.add(" ".join(words[8:])), "30 of 38 with the first; the refused one would have barred it"


def test_short_texts() -> None:
    kept = NearDuplicates()
    assert [kept.add(text) for text in ("", "a", "a b", "a b c", "a b", "")] == [
        True,
        True,
        True,
        True,
        False,
        False,
    ]


def test_the_prefix_filter_misses_none() -> None:
    chance = random.Random(3)
    kept, sets = NearDuplicates(), list[set[tuple[str, str, str]]]()
    for _ in range(400):
        tokens = [chance.choice("abc") for _ in range(chance.randrange(8, 14))]
        triples = set(zip(tokens, tokens[1:], tokens[2:], strict=False))
        fresh = all(5 * len(triples & other) < 4 * len(triples | other) for other in sets)
        assert kept.add(" ".join(tokens)) == fresh
        if fresh:
            sets.append(triples)
