import errno
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any, NoReturn

import pytest
import typer
from typer.main import get_command

from app import cli
from app.commands import ask
from app.options import StoreOption
from retriever.errors import BusyError, HoneError, InputError
from retriever.store import code_version
from tests.app.command_line import Hone

COMMANDS = "dataset init train refresh index mine search evaluate serve cycle demo export pin".split()
GROUPS = {"dataset": ["python", "pairs", "trec", "split"], "export": ["model", "negatives"]}
LEAVES = [[name] for name in COMMANDS if name not in GROUPS]
LEAVES += [[group, name] for group, names in GROUPS.items() for name in names]


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let `hone search` end in ``error``."""

    def search(query: str, store: StoreOption = None) -> NoReturn:
        raise error

    monkeypatch.setattr(ask, "search", search)


def test_help_lists_every_command_with_a_sentence(hone: Hone) -> None:
    answer = hone("--help")
    assert answer.code == 0 and answer.err == ""
    listed = {line.split()[0]: line for line in answer.out.splitlines() if line.startswith("  ") and line.split()}
    for name, (_, summary) in cli.COMMANDS.items():
        assert listed[name].endswith(f"  {summary}") and len(summary.split()) > 3, "whole, not cut with dots"
    assert set(COMMANDS) <= set(cli.COMMANDS)


@pytest.mark.parametrize(
    ("words", "spared"),
    [
        (["--help"], {"torch", "transformers", "fastapi", "sqlalchemy"}),
        (["nonsense"], {"torch"}),
        (["keys", "--help"], {"torch", "faiss"}),
        (["train", "--help"], {"fastapi", "sqlalchemy"}),
        (["search", "--help"], {"fastapi", "sqlalchemy"}),
    ],
)
def test_a_command_does_not_load_what_others_need(words: list[str], spared: set[str]) -> None:
    """Torch alone takes seconds, which whoever asks for help would wait."""
    script = "import sys; from app.cli import main\ntry: main()\nfinally: print(*sys.modules, file=sys.stderr)"
    command = [sys.executable, "-c", script, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == (2 if words == ["nonsense"] else 0)
    assert not spared & set(done.stderr.splitlines()[-1].split())


def test_jax_which_bm25s_takes_where_it_is_stays_off_the_gpu(hone: Hone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAX_PLATFORMS")
    hone("--help")
    assert os.environ["JAX_PLATFORMS"] == "cpu"


@pytest.mark.parametrize("command", LEAVES, ids=" ".join)
def test_each_command_has_a_help_that_a_person_can_follow(hone: Hone, command: list[str]) -> None:
    """A sentence on top, and beside each argument and option what it is."""
    answer = hone(*command, "--help")
    assert answer.code == 0 and answer.out.startswith(f"Usage: hone {' '.join(command)} ")
    found: Any = get_command(cli.build_app())
    for name in command:
        found = found.commands[name]
    assert found.help.strip().endswith(".") and " ".join(found.help.split())[:40] in answer.out
    shown = [parameter for parameter in found.params if not getattr(parameter, "hidden", False)]
    assert not [parameter.name for parameter in shown if not (parameter.help or "").strip()]


def test_what_a_machine_reads_is_offered_as_json(hone: Hone) -> None:
    for command in LEAVES:
        if command[0] not in ("demo", "serve", "refresh"):
            assert "--json" in hone(*command, "--help").out, command


def test_the_version_names_code_and_libraries(hone: Hone) -> None:
    told = hone("--version")
    assert told.code == 0 and told.out.startswith(
        f"hone {code_version()}, torch {metadata.version('torch')}, transformers "
    )


def test_a_command_that_does_not_exist_and_words_that_do_not_fit(hone: Hone) -> None:
    assert "nonsense" in hone("nonsense").complaint
    assert "--nonsense" in hone("search", "x", "--nonsense").complaint
    assert "config" in hone("train").complaint.lower()
    assert "--top-k" in hone("search", "x", "-k", 0).complaint
    assert "--port" in hone("serve", "--port", 70_000).complaint
    assert "fp16" in hone("index", "data", "--precision", "fp16").complaint
    bare = hone()
    assert bare.code == 2 and "Usage: hone" in bare.out + bare.err


@pytest.mark.parametrize("kind", [HoneError, InputError, BusyError])
def test_an_error_on_purpose_is_one_line(
    hone: Hone, monkeypatch: pytest.MonkeyPatch, kind: Callable[[str], HoneError]
) -> None:
    raising(monkeypatch, kind("run.toml: no such key\nin this file"))
    assert hone("search", "x").complaint == "run.toml: no such key in this file"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), typer.Abort()])
def test_an_interruption(hone: Hone, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    raising(monkeypatch, error)
    assert hone("search", "x").complaint == "interrupted; nothing half-written was published"


FULL = [
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "store/a.npy"),
    OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
    OSError("4194304 requested and 1048576 written"),
    RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    RuntimeError("(sqlite3.OperationalError) database or disk is full"),
]


@pytest.mark.parametrize("error", FULL, ids=str)
def test_a_full_disk_however_a_library_says_it(hone: Hone, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    raising(monkeypatch, error)
    complaint = hone("search", "x").complaint
    assert complaint.startswith("store/a.npy: no space" if error is FULL[0] else "the disk: no space")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_place_that_may_not_be_written(hone: Hone, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    raising(monkeypatch, OSError(number, os.strerror(number), "store/format.json"))
    assert hone("search", "x").complaint.startswith(f"store/format.json: {os.strerror(number)}")


@pytest.mark.parametrize("error", [ZeroDivisionError("a fault"), FileNotFoundError(2, "No such file"), OSError("odd")])
def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    raising(monkeypatch, error)
    monkeypatch.setattr(sys, "argv", ["hone", "search", "x"])
    with pytest.raises(type(error)):
        cli.main()
