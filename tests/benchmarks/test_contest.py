from pathlib import Path
from typing import Any

import pytest

from benchmarks.contest import built_once, slices


def test_an_index_is_built_once_by_each_code_and_settings(tmp_path: Path) -> None:
    index, builds = tmp_path / "index", list[str]()

    def built(made_by: str, run: str) -> dict[str, Any]:
        def build() -> dict[str, Any]:
            builds.append(made_by)
            index.write_text(made_by)
            return {"seconds": len(builds)}

        return built_once(str(index), made_by, run, build)

    first = {"seconds": 1, "made_by": "1.0 M16", "run": "a", "bytes": 7}
    assert built("1.0 M16", "a") == built("1.0 M16", "b") == first, "it tells which run built it"
    assert built("1.10 M16", "b") == {"seconds": 2, "made_by": "1.10 M16", "run": "b", "bytes": 8}
    assert builds == ["1.0 M16", "1.10 M16"]


def test_an_index_that_was_not_finished_is_built_anew(tmp_path: Path) -> None:
    def killed() -> dict[str, Any]:
        (tmp_path / "index").write_text("hal")
        raise KeyboardInterrupt

    def build() -> dict[str, Any]:
        (tmp_path / "index").write_text("whole")
        return {}

    built_once(str(tmp_path / "index"), "1.0", "run", build)
    with pytest.raises(KeyboardInterrupt):
        built_once(str(tmp_path / "index"), "1.1", "run", killed)
    assert built_once(str(tmp_path / "index"), "1.0", "run", build)["bytes"] == 5


def test_queries_are_handed_over_all_at_once_or_a_few_a_call() -> None:
    assert [list(range(7))[part] for part in slices(7, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert slices(7, 0) == [slice(0, 7)]
