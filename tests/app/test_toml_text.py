import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.toml_text import toml_text

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS = st.one_of(TEXT, st.booleans(), st.integers(-(2**60), 2**60), st.floats(allow_nan=False))
VALUES = st.recursive(
    SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3))
)


@given(st.dictionaries(TEXT, VALUES, max_size=4))
def test_what_is_written_is_read_again(table: dict[str, Any]) -> None:
    assert tomllib.loads(toml_text(table)) == table


def test_it_looks_like_a_run_file() -> None:
    table = {"seed": 1, "train": {"max_steps": 6, "rate": 5e-05}, "negatives": {"sampler": {"name": "top"}}}
    assert toml_text(table).splitlines() == [
        "seed = 1",
        "",
        "[train]",
        "max_steps = 6",
        "rate = 5e-05",
        "",
        "[negatives]",
        'sampler = { name = "top" }',
    ]


def test_what_toml_has_no_word_for_is_refused() -> None:
    with pytest.raises(ValueError, match="NoneType"):
        toml_text({"data": {"dev": None}})
