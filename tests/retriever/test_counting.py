import pytest

from retriever.counting import counted


@pytest.mark.parametrize(
    ("number", "said"), [(0, "0 pairs are"), (1, "1 pair is"), (2, "2 pairs are"), (1001, "1,001 pairs are")]
)
def test_one_is_said_otherwise_than_none_or_many(number: int, said: str) -> None:
    assert counted(number, "pair is", "pairs are") == said
