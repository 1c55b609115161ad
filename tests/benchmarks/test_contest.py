from pathlib import Path
from typing import Any

import pytest

from benchmarks.contest import built_once


def test_an_index_is_built_once_by_each_code_and_settings(tmp_path: Path) -> None:
    index, builds = tmp_path / "index", list[str]()

    def built(made_by: str) -> dict[str, Any]:
        def build() -> dict[str, Any]:
            builds.append(made_by)
            index.write_text(made_by)
            return {"seconds": len(builds)}

        return built_once(str(index), made_by, build)

    assert built("1.0 M16") == built("1.0 M16") == {"seconds": 1, "made_by": "1.0 M16", "bytes": 7}
    assert built("1.10 M16") == {"seconds": 2, "made_by": "1.10 M16", "bytes": 8}
    assert builds == ["1.0 M16", "1.10 M16"]


def test_an_index_that_was_not_finished_is_built_anew(tmp_path: Path) -> None:
    def killed() -> dict[str, Any]:
        (tmp_path / "index").write_text("hal")
        raise KeyboardInterrupt

    def build() -> dict[str, Any]:
        (tmp_path / "index").write_text("whole")
        return {}

    built_once(str(tmp_path / "index"), "1.0", build)
    with pytest.raises(KeyboardInterrupt):
        built_once(str(tmp_path / "index"), "1.1", killed)
    assert built_once(str(tmp_path / "index"), "1.0", build)["bytes"] == 5
