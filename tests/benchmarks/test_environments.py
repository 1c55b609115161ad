import re
import sys
from pathlib import Path

import pytest

from benchmarks import environments
from benchmarks.environments import HERE, PEERS, peers, python_of


def test_our_own_environment_is_the_one_that_runs() -> None:
    assert python_of("hone") == Path(sys.executable)


def test_an_unknown_environment_names_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"'nobody': .*sentence-transformers"):
        python_of("nobody")


def test_peers_run_here_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HERE, "1")
    assert python_of("infinity") == Path(sys.executable)
    with pytest.raises(ValueError, match="'nobody'"):
        python_of("nobody")


@pytest.mark.parametrize("peer", peers())
def test_every_peer_is_pinned(peer: str) -> None:
    for line in (PEERS / f"{peer}.txt").read_text().splitlines():
        assert re.fullmatch(r"[\w.\[\],-]+==[\w.+]+|#.*", line), line


def test_an_environment_is_made_once_and_again_when_its_pins_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def make(folder: Path, pins: Path) -> None:
        folder.mkdir(exist_ok=True)
        made.append(pins.read_text())

    monkeypatch.setattr(environments, "PEERS", tmp_path)
    monkeypatch.setattr(environments, "_make", make)
    monkeypatch.setenv("HONE_BENCH", str(tmp_path / "bench"))
    for pins in ("one==1\n", "one==1\n", "one==2\n"):
        (tmp_path / "one.txt").write_text(pins)
        assert python_of("one") == tmp_path / "bench" / "one" / "bin" / "python"
    assert made == ["one==1\n", "one==2\n"]
