import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.jobs import Jobs
from app.settings import database_url
from retriever.store import Store
from tests.app.command_line import Hone, contents
from tests.app.served import wait_for


def test_index_without_data_rebuilds_what_is_served(hone: Hone, trained: Path) -> None:
    made = hone("index", "--store", trained, "--precision", "fp32", "--factory", "IVF2,Flat", "--json").json
    served = Store(trained).generations.at(2)
    assert (made["number"], made["factory"], made["step"]) == (3, "IVF2,Flat", served.facts["step"])
    assert made["weights_sha256"] == served.facts["weights_sha256"]
    again = hone("index", "--store", trained, "--json").json
    assert (again["number"], again["factory"]) == (4, "IVF2,Flat"), "what no flag names stays as it is served"


def test_index_tells_what_it_made_and_what_is_next(hone: Hone, tiny: Path) -> None:
    answer = hone("index", tiny / "data", "--model", tiny / "model", "--store", "here")
    assert answer.code == 0 and "generations 0: here/generations/000000" in answer.out
    assert "recall_at_100        1.0" in answer.out and "hone search --store here" in answer.out


def test_mine_publishes_the_negatives_of_the_newest_generation(hone: Hone, tiny: Path, trained: Path) -> None:
    made = hone("mine", tiny / "run.toml", "--store", trained, "--json").json
    assert (made["kind"], made["number"], made["queries"], made["depth"]) == ("negatives", 3, 20, 10)
    assert Store(trained).negatives.at(3).parents["generation"] == 2


def test_mine_without_a_generation(hone: Hone, tiny: Path) -> None:
    assert "no generation to mine from" in hone("mine", tiny / "run.toml").complaint


def test_pin_names_an_artifact_and_lists_the_names(hone: Hone, trained: Path) -> None:
    names = hone("pin", "generations", 1, "WARMUP", "--json").json
    assert names["WARMUP"] == 1 and names["CURRENT"] == 2
    assert hone("pin", "generations", "--json").json == names == Store(trained).generations.pointers()
    listed = hone("pin", "generations").out.splitlines()
    assert "WARMUP       generations 1" in listed and len(listed) == len(names)
    assert hone("pin", "generations", 0, "SERVED", "--json").json["SERVED"] == 0, "a rollback"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["models"], "no kind 'models' of artifact; there are corpora"),
        (["generations", 9, "WARMUP"], "generations/000009"),
        (["generations", 1], "give a name after the number"),
        (["generations", 1, "two words"], "pointer 'two words'"),
        (["generations", "one", "WARMUP"], "number"),
    ],
)
def test_pin_refuses_what_it_cannot_name(hone: Hone, trained: Path, arguments: list[object], said: str) -> None:
    before = contents(trained)
    assert said in hone("pin", *map(str, arguments)).complaint
    assert contents(trained) == before


def test_pin_does_not_let_a_partial_generation_be_served(hone: Hone, trained: Path) -> None:
    manifest = trained / "generations/000001/manifest.json"
    manifest.write_text(manifest.read_text().replace('"facts": {', '"facts": {"partial": {"turn": 0},'))
    for name in ("SERVED", "BEST"):
        assert "is partial, to be mined from alone" in hone("pin", "generations", 1, name).complaint
    assert hone("pin", "generations", 1, "KEPT", "--json").json["KEPT"] == 1


@pytest.fixture
def jobs(trained: Path) -> Iterator[Jobs]:
    table = Jobs(database_url(trained))
    yield table
    table.close()


def test_the_work_of_a_server_s_job(hone: Hone, trained: Path, jobs: Jobs) -> None:
    job, _ = jobs.create("rebuild")
    assert hone("index", "--store", trained, "--job-priority", "normal", "--job", job.id).code == 0
    ended = jobs.get(job.id)
    assert ended.state == "done" and ended.result is not None
    assert ended.result["generation"] == 3 and ended.result["gate"]["served"]
    assert Store(trained).generations.pointed("SERVED") == 3


def test_a_job_that_was_cancelled_before_it_began(hone: Hone, trained: Path, jobs: Jobs) -> None:
    job, _ = jobs.create("rebuild")
    jobs.request_cancel(job.id)
    before = contents(trained / "generations")
    assert hone("index", "--store", trained, "--job", job.id).complaint
    assert jobs.get(job.id).state == "cancelled" and contents(trained / "generations") == before


def test_jobs_promote_and_roll_back(hone: Hone, trained: Path, jobs: Jobs) -> None:
    """The same move as from the command line, for a server that may not write to the store."""
    generations = Store(trained).generations
    generations.point("SERVED", 0)
    for kind, params, served in (("promote", {"number": 2, "force": True}, 2), ("rollback", {}, 0)):
        job, _ = jobs.create(kind, params)
        assert hone("index", "--store", trained, "--job", job.id).code == 0
        assert generations.pointed("SERVED") == served
        result = jobs.get(job.id).result
        assert result is not None and result["to"] == served


def test_a_job_of_a_kind_that_is_unknown_fails(hone: Hone, trained: Path, jobs: Jobs) -> None:
    job, _ = jobs.create("brew")
    assert "kind 'brew' is unknown" in hone("index", "--store", trained, "--job", job.id).complaint
    assert jobs.get(job.id).state == "failed"


def test_a_queued_rebuild_is_done_by_one_who_follows(hone: Hone, trained: Path, jobs: Jobs) -> None:
    queued = hone("index", "--store", trained, "--queue", "--json").json
    assert queued["new"] and not hone("index", "--store", trained, "--queue", "--json").json["new"]
    command = [sys.executable, "-m", "app.cli", "index", "--store", str(trained), "--follow"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as follower:
        try:
            wait_for(lambda: jobs.get(queued["job"]).state not in ("queued", "running"), seconds=120)
        finally:
            follower.send_signal(signal.SIGTERM)
        assert follower.wait() == 0
    assert jobs.get(queued["job"]).state == "done"
    assert Store(trained).generations.pointed("SERVED") == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ("DATA", "--follow"),
        ("--queue", "--follow"),
        ("--queue", "--slice", "language"),
        ("--follow", "--factory", "Flat"),
    ],
)
def test_following_and_queueing_go_alone(hone: Hone, trained: Path, arguments: tuple[str, ...]) -> None:
    assert "go alone" in hone("index", *arguments, "--store", trained).complaint


@pytest.mark.parametrize("arguments", [("--model", "minilm"), ("--skip-missing",)])
def test_what_needs_data_is_refused_without(hone: Hone, trained: Path, arguments: tuple[str, ...]) -> None:
    assert "go with DATA" in hone("index", *arguments, "--store", trained).complaint


def test_a_job_that_nobody_knows(hone: Hone, trained: Path, jobs: Jobs) -> None:
    assert "nobody" in hone("index", "--store", trained, "--job", "nobody").complaint
