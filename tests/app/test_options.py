import json
from pathlib import Path

import pytest

from app.options import print_json, store_path, warn


def test_the_flag_goes_before_the_environment_and_that_before_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HONE_STORE", raising=False)
    assert store_path(None) == Path("store")
    monkeypatch.setenv("HONE_STORE", "/srv/store")
    assert store_path(None) == Path("/srv/store")
    monkeypatch.setenv("HONE_PORT", "no port")
    assert store_path(Path("given")) == Path("given"), "what a flag says needs no environment"


def test_json_is_one_line_in_any_language(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"query": "wo ist die Tür?\nhier", "hits": []})
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and "Tür" in printed
    assert json.loads(printed) == {"query": "wo ist die Tür?\nhier", "hits": []}


def test_warnings_stay_out_of_the_output(capsys: pytest.CaptureFixture[str]) -> None:
    warn("two lines were skipped")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "hone: warning: two lines were skipped\n")
