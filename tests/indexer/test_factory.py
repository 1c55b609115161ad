from dataclasses import asdict, replace
from typing import Any

import pytest

from indexer import factory, faiss_auto
from indexer.factory import IndexConfig, check_config, earlier_choice, make_index
from indexer.faiss_auto import Choice
from indexer.shards import Vectors
from retriever.errors import InputError
from retriever.protocols import silent
from tests.indexer.planted import plant_vectors, unit_rows

QUERIES = unit_rows(60, 16, seed=1)


def no_warning(message: str) -> None:
    raise AssertionError(message)


def refuse(*_args: Any) -> Choice:
    raise AssertionError("nothing was to be chosen")


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Vectors:
    return plant_vectors(tmp_path_factory.mktemp("vectors"), unit_rows(2000, 16), block_rows=1024)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"factory": " "}, "factory is empty"),
        ({"target_recall": 0.0}, r"target_recall = 0\.0"),
        ({"seed": -1}, r"\[index\] seed = -1; write 0 or more"),
        ({"target_recall": 1.1}, r"target_recall = 1\.1"),
        ({"search": {"nprobe": 3}}, "search needs a factory"),
        ({"slices": ("a", "b", "a")}, r"slices = \['a', 'b', 'a'\]: name each field once"),
        ({"max_memory_mb": 0.0}, r"max_memory_mb = 0\.0; write megabytes above 0"),
        ({"max_memory_mb": float("nan")}, r"max_memory_mb = nan; write megabytes above 0"),
    ],
)
def test_a_value_out_of_range_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        IndexConfig(**settings)


def test_what_faiss_would_refuse_is_refused_beforehand() -> None:
    check_config(IndexConfig(), 16, 10)
    check_config(IndexConfig("IVF16,Flat", search={"nprobe": 4}), 16, 100)
    with pytest.raises(InputError, match="could not parse"):
        check_config(IndexConfig("IFV16,Flat"), 16, 100)
    with pytest.raises(InputError, match="at least 16 passages"):
        check_config(IndexConfig("IVF16,Flat"), 16, 10)
    with pytest.raises(InputError, match="no parameter 'nprob' here; it takes nprobe"):
        check_config(IndexConfig("IVF16,Flat", search={"nprob": 4}), 16, 100)


def test_what_exceeds_the_memory_limit_is_refused_beforehand() -> None:
    check_config(IndexConfig(max_memory_mb=0.05), 16, 3000)
    check_config(IndexConfig("Flat", max_memory_mb=0.193), 16, 3000)
    with pytest.raises(InputError, match=r"factory = 'Flat' takes about 1 MB for 3000 .* max_memory_mb = 0\.19;"):
        check_config(IndexConfig("Flat", max_memory_mb=0.19), 16, 3000)
    with pytest.raises(InputError, match=r"max_memory_mb = 0\.01 is too little"):
        check_config(IndexConfig(max_memory_mb=0.01), 16, 3000)


def test_fixed_parameters_are_taken_as_they_are(vectors: Vectors) -> None:
    config = IndexConfig("IVF16,Flat", search={"nprobe": 2})
    index, choice = make_index(vectors, QUERIES, config, None, silent, no_warning)
    assert index.ntotal == 2000
    assert choice == Choice("IVF16,Flat", {"nprobe": 2}, ())


def test_a_factory_without_parameters_is_tuned_to_the_target(vectors: Vectors) -> None:
    _, choice = make_index(vectors, QUERIES, IndexConfig("IVF16,Flat"), None, silent, no_warning)
    measured = {p["parameters"]["nprobe"]: p["recall"] for p in choice.front}
    assert choice.factory == "IVF16,Flat" and measured[choice.parameters["nprobe"]] >= 0.95
    assert choice.parameters["nprobe"] > 1


def test_a_factory_too_coarse_for_the_target_is_built_and_said(vectors: Vectors) -> None:
    said: list[str] = []
    _, choice = make_index(vectors, QUERIES, IndexConfig("PQ8x4fs"), None, silent, said.append)
    assert choice.factory == "PQ8x4fs"
    assert len(said) == 1 and "'PQ8x4fs' reaches recall@10 0." in said[0] and "target_recall = 0.95" in said[0]


def test_auto_is_flat_for_so_few_rows(vectors: Vectors) -> None:
    index, choice = make_index(vectors, QUERIES, IndexConfig(), None, silent, no_warning)
    assert choice == Choice("Flat", {}, ()) and index.ntotal == 2000


def test_a_target_that_only_flat_reaches_is_said(vectors: Vectors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss_auto, "FLAT_ROWS", 2000)
    monkeypatch.setattr(faiss_auto, "CANDIDATES", ("PQ{m}x4fs",))
    monkeypatch.setattr(faiss_auto, "CODES_PER_DIMENSION", (0.5,))
    said: list[str] = []
    _, choice = make_index(vectors, QUERIES, IndexConfig(), None, silent, said.append)
    assert choice.factory == "Flat"
    assert len(said) == 1 and "no quicker kind of index reaches target_recall = 0.95" in said[0]
    make_index(vectors, QUERIES, IndexConfig("Flat"), None, silent, no_warning)


def test_an_earlier_choice_holds_while_it_reaches_the_target(vectors: Vectors, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = Choice("IVF16,Flat", {"nprobe": 16}, [{"recall": 1.0}])
    with monkeypatch.context() as patch:
        patch.setattr(factory, "choose_index", refuse)
        patch.setattr(factory, "tune", refuse)
        for config in (IndexConfig(), IndexConfig("IVF16,Flat")):
            _, choice = make_index(vectors, QUERIES, config, earlier, silent, no_warning)
            assert choice is earlier
    worn_out = Choice("IVF16,Flat", {"nprobe": 1})
    _, choice = make_index(vectors, QUERIES, IndexConfig(), worn_out, silent, no_warning)
    assert choice.factory == "Flat"
    _, choice = make_index(vectors, QUERIES, IndexConfig("IVF16,Flat"), worn_out, silent, no_warning)
    assert choice.factory == "IVF16,Flat" and choice.parameters["nprobe"] > 1


def test_an_earlier_choice_holds_at_the_depth_of_mining_too(vectors: Vectors) -> None:
    config = IndexConfig("IVF16,Flat")
    _, first = make_index(vectors, QUERIES, config, None, silent, no_warning, depth=100)
    assert first.deep is not None and first.deep["depth"] == 100 and first.deep["recall"] >= 0.95
    _, kept = make_index(vectors, QUERIES, config, first, silent, no_warning, depth=100)
    assert kept is first
    _, other_depth = make_index(vectors, QUERIES, config, first, silent, no_warning, depth=50)
    assert other_depth.deep is not None and other_depth.deep["depth"] == 50
    shallow = replace(first, deep={"depth": 100, "parameters": {"nprobe": 1}, "recall": 0.95})
    _, mended = make_index(vectors, QUERIES, config, shallow, silent, no_warning, depth=100)
    assert mended.deep is not None and mended.deep["parameters"]["nprobe"] > 1


def test_only_the_same_configuration_and_corpus_take_a_choice_over() -> None:
    facts = {
        "index_config": asdict(IndexConfig()),
        "corpus_sha256": "c0",
        "factory": "HNSW32",
        "search": {"efSearch": 64},
        "front": [],
    }
    assert earlier_choice(facts, IndexConfig(), "c0") == Choice("HNSW32", {"efSearch": 64}, [])
    deep = {"depth": 200, "parameters": {"efSearch": 512}, "recall": 0.96}
    assert earlier_choice({**facts, "search_deep": deep}, IndexConfig(), "c0") == Choice(
        "HNSW32", {"efSearch": 64}, [], deep
    )
    assert earlier_choice(facts, IndexConfig(), "c1") is None
    assert earlier_choice(facts, IndexConfig(target_recall=0.9), "c0") is None
    assert earlier_choice({}, IndexConfig(), "c0") is None
    sliced = {**facts, "index_config": {**asdict(IndexConfig()), "slices": ["language"]}}
    for config in (IndexConfig(), IndexConfig(slices=("language",)), IndexConfig(slices=("year",))):
        assert earlier_choice(sliced, config, "c0") is not None, "the gate's questions have no say in the index"
