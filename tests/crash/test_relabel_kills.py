"""`hone relabel` killed in the middle of asking: what was answered is paid for once."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from app.indexing import index_data
from tests.app.chat_server import ChatServer, chatting
from tests.app.command_line import silent
from tests.app.served import wait_for
from tests.crash.killing import hone, write_run

CONCURRENCY = 4
RELABEL = """\
run = "scheduled.toml"
[suspects]
top = 3
[[judges]]
kind = "chat"
url = "{url}"
model = "judge"
prompt = "{{query}} | {{passage}}"
concurrency = {concurrency}
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def reply(prompt: str, times: int) -> str:
    return "yes" if sum(map(ord, prompt)) % 3 == 0 else "no"


def finished(*arguments: str | Path) -> str:
    ended = subprocess.run(hone(*arguments), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return ended.stdout


def verdicts(folder: Path) -> list[tuple[str, str, bool]]:
    found = [json.loads(line) for line in (folder / "verdicts.jsonl").read_text().splitlines()]
    return [(one["query"], one["passage"], one["relevant"]) for one in found]


def kill_after(chat: ChatServer, asked: int, *arguments: str | Path) -> None:
    """Run `hone` until the server was asked so often in all, then send SIGKILL."""
    process = subprocess.Popen(hone(*arguments), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: len(chat.bodies) >= asked or process.poll() is not None, seconds=300)
        assert process.poll() is None, "it ended before it was killed"
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()


def test_a_killed_relabelling_asks_nothing_twice_that_was_answered(tmp_path: Path) -> None:
    run = write_run(tmp_path, "scheduled", 4)
    store = tmp_path / "store"
    index_data(store, tmp_path / "data", str(tmp_path / "model"), {"precision": "fp32"}, silent)
    finished("mine", run, "--store", store)
    with chatting(reply) as chat:
        config = tmp_path / "relabel.toml"
        config.write_text(RELABEL.format(url=chat.url, concurrency=CONCURRENCY))
        finished("relabel", config, "--store", store, "--out", tmp_path / "undisturbed")
        pairs, first = len(chat.bodies), chat.prompts
        assert pairs == 240 and set(first.values()) == {1}
        for kill in range(1, 4):
            kill_after(chat, pairs + kill * 50, "relabel", config, "--store", store, "--out", tmp_path / "killed")
            answered = (tmp_path / "killed/judgements.jsonl").read_text().count("\n")
            assert not (tmp_path / "killed/verdicts.jsonl").exists()
            assert 0 < answered < pairs
        told = json.loads(finished("relabel", config, "--store", store, "--out", tmp_path / "killed", "--json"))
        twice = sum(count > 2 for count in chat.prompts.values())
        assert chat.prompts.keys() == first.keys() and max(chat.prompts.values()) <= 2 + 3
        assert twice <= 3 * CONCURRENCY, "at most what was on its way at each kill"
        assert told["judges_in_all"]["judge"]["asked"] == pairs and told["undecided"] == 0
    assert verdicts(tmp_path / "killed") == verdicts(tmp_path / "undisturbed")
