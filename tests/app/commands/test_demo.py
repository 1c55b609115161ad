import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.commands import demo
from app.demonstration import Demonstration
from app.training import TrainingResult
from retriever.store import Store
from retriever.trainer import Outcome
from tests.app.command_line import Hone

FIGURES = {"nDCG@10": 0.532, "RR@10": 0.5, "R@100": 0.9, "AUC": 0.97}


@pytest.fixture
def done(indexed: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let the demo be over at once; what is served is kept."""
    training = TrainingResult(Outcome("finished", 72, 4, 3, 31), 4711, 200.0, 3)
    generations = [{"number": n, "step": 24 * n, "weights_sha256": f"w{n}"} for n in range(4)]
    after = {name: value + 0.01 for name, value in FIGURES.items()}
    queries = ['it\'s a "query"', "baka beki", "bodu"]
    result = Demonstration(Store(indexed), FIGURES, after, training, generations, [0, 9, 9, 0], queries, 240.5)
    monkeypatch.setattr(demo, "run_demo", lambda folder: result)
    served: list[Any] = []

    def serve_store(root: Path, host: str, port: int, *, listening: Callable[[str], None]) -> None:
        served.append((root, host, port))
        listening("http://there:4711")

    monkeypatch.setattr(demo, "serve_store", serve_store)
    return served


def test_the_last_line_is_one_json_object(hone: Hone, done: list[Any]) -> None:
    answer = hone("demo", "--no-serve")
    assert answer.code == 0 and done == []
    line = json.loads(answer.out.splitlines()[-1])
    assert list(line) == [
        *("before", "after", "trainer_pid", "refresher_pid", "generations", "steps_during_rebuild"),
        *("negative_sets_adopted", "max_staleness_steps", "seconds"),
    ]
    assert line["before"] == FIGURES and line["refresher_pid"] == 4711 and line["max_staleness_steps"] == 31


def test_a_table_and_one_answered_query_without_the_server(hone: Hone, done: list[Any]) -> None:
    out = hone("demo", "--no-serve").out
    assert "0.5320" in out and "0.5420" in out and "+0.0100" in out and "31 steps stale" in " ".join(out.split())
    asked = out[out.index("Asked: it's a") :].splitlines()
    assert [line.split()[0] for line in asked[1:4]] == ["1.", "2.", "3."]


def test_with_the_server_three_queries_that_a_shell_can_run(
    hone: Hone, done: list[Any], indexed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They ask the port that is listened on, which the system chooses where none is named."""
    monkeypatch.setenv("HONE_PORT", "0")
    out = hone("demo").out
    assert done == [(indexed, "127.0.0.1", 0)]
    commands = [shlex.split(line) for line in out.splitlines() if line.strip().startswith("curl")]
    bodies = [json.loads(command[-1]) for command in commands]
    assert [body["queries"] for body in bodies] == [['it\'s a "query"'], ["baka beki"], ["bodu"]]
    assert all("http://there:4711/v1/search" in command for command in commands)
    json.loads(out.splitlines()[-1])
