import json
from typing import Any

import pytest

from indexer.slices import check_slices, slices_of
from retriever.data import QuerySet
from retriever.errors import InputError


def queries(*metadata: dict[str, Any]) -> QuerySet:
    names = [f"q{number}" for number in range(len(metadata))]
    return QuerySet("dev", names, names, [{}] * len(names), [json.dumps(one) if one else "" for one in metadata])


def named(ids: list[str], metadata: list[str], *fields: str) -> dict[str, list[int]]:
    return {one.name: one.places.tolist() for one in slices_of(ids, metadata, fields)}


def test_data_sets_of_a_join_are_slices_and_there_are_none_where_an_id_names_none() -> None:
    assert named(["nq/1", "squad/7", "squad/8/b"], []) == {"nq/": [0], "squad/": [1, 2]}
    assert named(["nq/1", "7"], []) == {}


def test_each_value_of_a_field_is_a_slice() -> None:
    asked = queries({"lang": "de", "year": 2020}, {"lang": ["fi", "de", "de"], "new": True}, {}, {"lang": []})
    assert named([*asked.ids], [*asked.metadata], "lang", "year", "new") == {
        "lang=de": [0, 1],
        "lang=fi": [1],
        "lang=null": [2, 3],
        "year=2020": [0],
        "year=null": [1, 2, 3],
        "new=null": [0, 2, 3],
        "new=true": [1],
    }
    assert named(["a/1", "b/2"], [], "lang") == {"a/": [0], "b/": [1], "lang=null": [0, 1]}


@pytest.mark.parametrize(
    ("fields", "asked", "said"),
    [
        (
            ["lnag"],
            queries({"lang": "de", "b": 1}, {"a": 2}),
            "no dev query has 'lnag' in its metadata; there are: a, b, lang",
        ),
        (["lang", "x"], queries({"lang": "de", "x": None}), "has 'x' in its metadata; there are: lang"),
        (["lang"], QuerySet("dev", ["q"], ["q"], [{}]), "there are: none"),
        (["of"], queries({"of": 1}, {"of": {"a": 1}}), "'of' of query 'q1' is neither a value nor a list of values"),
        (["of"], None, "slices = ['of']: there are no dev queries"),
    ],
)
def test_fields_that_part_nothing_are_refused(fields: list[str], asked: QuerySet | None, said: str) -> None:
    with pytest.raises(InputError) as caught:
        check_slices(fields, asked)
    assert said in str(caught.value) and str(caught.value).startswith("[index] slices")


def test_fields_that_are_there_pass_and_so_does_no_field() -> None:
    check_slices(["lang"], queries({"lang": "de"}, {}))
    check_slices([], None)
