from pathlib import Path

import pytest

from app.audited_runs import find_runs, together
from retriever.data import QuerySet
from retriever.errors import InputError
from tests.app.audit_stand_ins import trained_store, write_comparison, write_run_file
from tests.stand_ins import tiny_store, write_tiny_data


def fail(message: str) -> None:
    raise AssertionError(message)


def test_a_run_is_found_by_its_file_its_store_or_its_comparison(tmp_path: Path) -> None:
    data = write_tiny_data(tmp_path / "data")
    trained_store(tmp_path / "store", data)
    config = write_run_file(tmp_path, data)
    by_file, corpus = find_runs([config], tmp_path / "store", None, fail)
    by_store, _ = find_runs([tmp_path / "store"], tmp_path / "nowhere", config, fail)
    assert [(run.name, run.store.root) for run in by_file] == [("run", tmp_path / "store")]
    assert [(run.name, run.store.root) for run in by_store] == [("store", tmp_path / "store")]
    assert len(corpus) == 60 and by_file[0].queries.ids == [f"q{n}" for n in range(20)]
    root = tmp_path / "compare/runs/plain-1-0123abcd"
    write_run_file(root, data)
    trained_store(root / "store", data)
    folder = write_comparison(tmp_path / "compare", {("plain", 1): (root, [0.5] * 10)})
    (compared,), _ = find_runs([folder], tmp_path / "nowhere", None, fail)
    assert (compared.name, compared.system, compared.store.root) == ("plain seed 1", "plain", root / "store")


def test_what_is_no_run_is_refused_with_the_way_out(tmp_path: Path) -> None:
    data = write_tiny_data(tmp_path / "data")
    tiny_store(tmp_path / "empty", data)
    config = write_run_file(tmp_path, data)
    with pytest.raises(InputError, match="--config"):
        find_runs([tmp_path / "empty"], tmp_path, None, fail)
    with pytest.raises(InputError, match="nothing was trained"):
        find_runs([config], tmp_path / "empty", None, fail)
    with pytest.raises(InputError, match="neither a run"):
        find_runs([data], tmp_path, None, fail)
    write_comparison(tmp_path / "data", {("none", 1): (data, [])})
    (data / "results.json").write_text('{"runs": []}')
    with pytest.raises(InputError, match="no run is finished"):
        find_runs([data], tmp_path, None, fail)


def test_queries_of_several_runs_stand_once() -> None:
    first = QuerySet("train", ["a", "b"], ["x", "y"], [{0: 1}, {1: 1}])
    second = QuerySet("train", ["c", "b"], ["z", "y"], [{2: 1}, {1: 1}])
    queries, rows = together([first, second])
    assert queries.ids == ["a", "b", "c"] and [one.tolist() for one in rows] == [[0, 1], [2, 1]]
    changed = QuerySet("train", ["b"], ["y"], [{0: 1}])
    with pytest.raises(InputError, match="query 'b'"):
        together([first, changed])
