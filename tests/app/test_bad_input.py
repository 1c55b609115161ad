"""A person's mistakes and a machine's failures: one line that says what is wrong, exit code 2, the store as it was."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

from retriever.durable import read_lines
from retriever.store import Store
from tests.app.command_line import Hone, contents, write_run
from tests.app.served import damage

ROOT = Path(__file__).parent.parent.parent
HOLD = """\
import sys
from pathlib import Path
from retriever.durable import exclusive
with exclusive(Path(sys.argv[1]), "this"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def data(tiny: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny / "data", tmp_path / "data")


@pytest.fixture
def run(tiny: Path, data: Path, tmp_path: Path) -> Path:
    """A run.toml over data that a test may spoil: another configuration than the one that was trained."""
    return write_run(tmp_path / "run.toml", data, tiny / "model")


@pytest.fixture(params=["index", "cycle"])
def written(request: pytest.FixtureRequest, tiny: Path, run: Path) -> tuple[Path, list[object]]:
    """A store that a command writes to, and that command: what was trained in takes no model as it is."""
    if request.param == "index":
        return request.getfixturevalue("indexed"), ["index", run.parent / "data", "--model", tiny / "model"]
    return request.getfixturevalue("trained"), ["cycle", run, "--resume"]


def append(path: Path, line: str) -> int:
    """Append a line and return its number."""
    text = path.read_text() + line + "\n"
    path.write_text(text)
    return text.count("\n")


@contextmanager
def unchanged(store: Path) -> Iterator[None]:
    before = contents(store)
    yield
    assert contents(store) == before


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ('{"_id": "x", "text": ', "malformed JSON"),
        ('{"text": "no id"}', "no field '_id'"),
        ('{"_id": "p0", "text": "again"}', "duplicate id 'p0', first on line 1"),
        ('{"_id": "x", "title": " ", "text": ""}', "passage 'x' has an empty text"),
        ('["x", "text"]', "not a JSON object"),
    ],
)
def test_a_bad_passage(hone: Hone, written: tuple[Path, list[object]], data: Path, line: str, wrong: str) -> None:
    number = append(data / "corpus.jsonl", line)
    store, what = written
    with unchanged(store):
        complaint = hone(*what, "--store", store).complaint
    assert complaint.startswith(f"{data / 'corpus.jsonl'}:{number}: {wrong}")


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ('{"_id": "x"', "malformed JSON"),
        ('{"text": "no id"}', "no field '_id'"),
        ('{"_id": "q0", "text": "again"}', "duplicate id 'q0'"),
        ('{"_id": "x", "text": " "}', "query 'x' has an empty text"),
    ],
)
def test_a_bad_query(hone: Hone, trained: Path, run: Path, data: Path, line: str, wrong: str) -> None:
    number = append(data / "queries.jsonl", line)
    with unchanged(trained):
        complaint = hone("cycle", run, "--resume", "--store", trained).complaint
    assert complaint.startswith(f"{data / 'queries.jsonl'}:{number}: {wrong}")


def test_slices_by_a_field_that_no_dev_query_has(hone: Hone, trained: Path, run: Path) -> None:
    run.write_text(run.read_text() + 'slices = ["lang"]\n')
    with unchanged(trained):
        complaint = hone("cycle", run, "--resume", "--store", trained).complaint
    assert complaint == f"{run}: [index] slices: no dev query has 'lang' in its metadata; there are: none"


@pytest.mark.parametrize("also_a_new_corpus", [False, True])
@pytest.mark.parametrize("flag", ["--resume", "--new"])
def test_a_judgement_of_an_unknown_id_is_listed_and_counted(
    hone: Hone, trained: Path, run: Path, data: Path, flag: str, also_a_new_corpus: bool
) -> None:
    if also_a_new_corpus:
        append(data / "corpus.jsonl", '{"_id": "new", "text": "baka"}')
    for missing in ("nix", "nought"):
        number = append(data / "qrels/train.tsv", f"q1\t{missing}\t1")
    with unchanged(trained):
        complaint = hone("cycle", run, flag, "--store", trained).complaint
    assert f"{data}/qrels/train.tsv: 2 judgements" in complaint
    assert "nix" in complaint and f"nought (line {number})" in complaint and "--skip-missing" in complaint
    assert not list(trained.parent.glob("store.old-*"))


def test_skip_missing_goes_on_and_says_so(hone: Hone, run: Path, data: Path, tmp_path: Path) -> None:
    append(data / "qrels/train.tsv", "q1\tnix\t1")
    append(data / "qrels/dev.tsv", "nobody\tp1\t1")
    answer = hone("cycle", run, "--skip-missing", "--store", tmp_path / "store", "--json")
    assert answer.json["reason"] == "finished"
    assert "qrels/train.tsv: 1 judgement names an unknown passage: nix" in answer.err
    assert "qrels/dev.tsv: 1 judgement names an unknown query: nobody" in answer.err


def test_skip_missing_helps_wherever_it_is_advised(hone: Hone, tiny: Path, data: Path, trained: Path) -> None:
    append(data / "qrels/dev.tsv", "q1\tnix\t1")
    append(data / "corpus.jsonl", '{"_id": "void", "title": "", "text": " "}')
    model, place = tiny / "model", ["--data", data, "--split", "dev"]
    for command in (
        ["evaluate", "--model", model, "--precision", "fp32"],
        ["diff", "0", model, "--store", trained],
        ["merge", "0", "2", "--alphas", "0.5", "--out", "out", "--store", trained],
    ):
        complaint = hone(*command, *place).complaint
        assert "passage 'void' has an empty text" in complaint and "--skip-missing" in complaint
        answer = hone(*command, *place, "--skip-missing")
        assert answer.code == 0, answer.err
        assert "1 passage has an empty text: void (line 61); skipped" in answer.err
        assert "qrels/dev.tsv: 1 judgement names an unknown passage: nix" in answer.err


def test_a_run_over_a_corpus_with_a_passage_without_a_text(hone: Hone, tiny: Path, data: Path, tmp_path: Path) -> None:
    """As real data sets have some. What judges it is counted as missing, too."""
    append(data / "corpus.jsonl", '{"_id": "void", "title": "", "text": ""}')
    append(data / "qrels/train.tsv", "q1\tvoid\t1")
    assert hone("init", data, "--model", tiny / "model", "--json").json["passages"] == 60
    run = write_run(tmp_path / "run.toml", data, tiny / "model")
    assert hone("cycle", run).complaint.startswith(f"{data / 'corpus.jsonl'}:61: passage 'void' has an empty text; ")
    answer = hone("cycle", run, "--skip-missing", "--json")
    assert answer.json["reason"] == "finished"
    assert "corpus.jsonl: 1 passage has an empty text: void (line 61); skipped" in answer.err
    assert "qrels/train.tsv: 1 judgement names an unknown passage: void (line 22)" in answer.err
    assert Store(tmp_path / "store").corpora.at(0).facts["rows"] == 60


def test_no_training_pair(hone: Hone, trained: Path, run: Path, data: Path) -> None:
    (data / "qrels/train.tsv").write_text("query-id\tcorpus-id\tscore\nq0\tp0\t0\n")
    with unchanged(trained):
        complaint = hone("cycle", run, "--resume", "--store", trained).complaint
    assert complaint.startswith(f"{data}/qrels/train.tsv: split 'train' has no relevant")


@pytest.mark.parametrize(
    ("old", "new", "wrong"),
    [
        ("dropout = 0.0", "lora = { ranks = 8 }", "unknown key model.lora.ranks; did you mean model.lora.rank?"),
        ("dropout = 0.0", "lora = { rank = 0 }", "lora: rank must be at least 1, alpha above 0, dropout in [0, 1)"),
        ("max_steps = 6", "max_step = 6", "unknown key train.max_step; did you mean train.max_steps?"),
        ("max_steps = 6", 'max_steps = "6"', "train.max_steps: Input should be a valid integer"),
        ("depth = 10", "depth = 61", "negatives.depth = 61, but the corpus has 60 passages"),
        ("batch_size = 4", "batch_size = 4\nnum_negatives = 11", "train.num_negatives must not exceed negatives.depth"),
        ("seed = 1", "seed = ", "not TOML"),
    ],
)
def test_a_bad_run_file(hone: Hone, trained: Path, run: Path, old: str, new: str, wrong: str) -> None:
    run.write_text(run.read_text().replace(old, new))
    with unchanged(trained):
        complaint = hone("cycle", run, "--resume", "--store", trained).complaint
    assert complaint.startswith(f"{run}: {wrong}")


def test_more_hits_than_the_corpus_has(hone: Hone, indexed: Path) -> None:
    with unchanged(indexed):
        complaint = hone("search", "baka", "--store", indexed, "--top-k", 61).complaint
    assert complaint == "--top-k 61: the corpus has 60 passages"


def test_another_configuration_needs_resume_or_new(hone: Hone, trained: Path, run: Path) -> None:
    run.write_text(run.read_text().replace("seed = 1", "seed = 2"))
    with unchanged(trained):
        complaint = hone("cycle", run, "--store", trained).complaint
    assert str(trained) in complaint and "--resume" in complaint and "--new" in complaint


def test_a_store_that_was_indexed_by_hand_is_no_training_to_go_on_with(hone: Hone, indexed: Path, run: Path) -> None:
    for flags in ([], ["--resume"]):
        with unchanged(indexed):
            complaint = hone("cycle", run, *flags, "--store", indexed).complaint
        assert str(indexed) in complaint and "hone index" in complaint and "--new" in complaint


@pytest.mark.parametrize("what", ["store", "artifact"])
def test_a_newer_format(hone: Hone, indexed: Path, run: Path, what: str) -> None:
    path = indexed / ("format.json" if what == "store" else "generations/000000/manifest.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    commands: list[list[object]] = [["search", "baka"], ["evaluate", "--data", run.parent / "data"]]
    if what == "store":
        commands += [["cycle", run], ["refresh", run], ["index"], ["pin", "generations"]]
    for command in commands:
        with unchanged(indexed):
            complaint = hone(*map(str, command), "--store", indexed).complaint
        assert str(path) in complaint and "format 2 is newer" in complaint


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("harm", [damage, cut_off, Path.unlink])
@pytest.mark.parametrize("name", ["index.faiss", "vectors/00000.npy", "model/model.safetensors", "manifest.json"])
def test_of_a_broken_generation_the_one_before_is_used_and_said(
    hone: Hone, trained: Path, harm: Callable[[Path], None], name: str
) -> None:
    served = Store(trained).generations.pointed("SERVED")
    assert served == 2
    broken = trained / f"generations/{served:06d}" / name
    if name == "manifest.json" and harm is damage:
        broken.write_text(broken.read_text().replace('"kind"', "kind"))
    else:
        harm(broken)
    with unchanged(trained):
        answer = hone("search", "baka", "--store", trained, "--json")
    assert answer.json["generation"] == served - 1
    said = "which is gone" if name == "manifest.json" and harm is Path.unlink else str(broken)
    assert said in answer.err and "using the one before it" in answer.err
    assert str(broken) in hone("evaluate", "--data", "data", "--generation", served, "--store", trained).complaint


@pytest.mark.parametrize("harm", [damage, cut_off])
def test_the_only_generation_broken(hone: Hone, indexed: Path, harm: Callable[[Path], None]) -> None:
    harm(indexed / "generations/000000/index.faiss")
    with unchanged(indexed):
        complaint = hone("search", "baka", "--store", indexed).complaint
    assert "no intact artifact" in complaint and "generations" in complaint


def test_a_broken_checkpoint_is_not_resumed_from(hone: Hone, trained: Path, tiny: Path) -> None:
    """The run goes on from the checkpoint before it."""
    cut_off(trained / "checkpoints/000002/manifest.json")
    answer = hone("cycle", tiny / "run.toml", "--store", trained, "--json")
    assert "checkpoints/000002/manifest.json" in answer.err and "using the one before it" in answer.err
    assert answer.json["step"] == 6 and answer.json["checkpoint"] == 3


FAILURES: dict[str, Callable[[], Exception]] = {
    "write": lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "quota": lambda: OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
    "numpy": lambda: OSError("4096 requested and 1024 written"),
    "safetensors": lambda: RuntimeError("I/O error: No space left on device (os error 28)"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_full_disk(
    hone: Hone, written: tuple[Path, list[object]], data: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    def full(descriptor: int) -> NoReturn:
        error = FAILURES[failure]()
        raise error

    append(data / "corpus.jsonl", '{"_id": "new", "text": "baka"}')
    store, what = written
    monkeypatch.setattr(os, "fsync", full)
    with unchanged(store):
        complaint = hone(*what, "--store", store).complaint
    assert "no space left" in complaint and "nothing half-written was published" in complaint


def on_small_disk(disk: Path, kilobytes: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python with ``arguments`` while ``disk`` is a disk of so many ``kilobytes``, for that process alone."""
    mount = f'mount -t tmpfs -o size={kilobytes}k none "$1" || exit 77; shift; exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", mount, "sh", disk, sys.executable, *arguments]
    ended = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, check=False)
    if ended.returncode == 77 or "unshare failed" in ended.stderr:
        pytest.skip("a full disk needs the right to mount one, as root or in a user namespace")
    return ended


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare to mount a disk for one process")
def test_a_disk_that_is_really_full(tmp_path: Path, tiny: Path) -> None:
    """Each library meets it in its own way; wherever it comes, one line says so."""
    for kilobytes in (30, 100, 500, 950):
        cycle = ["-m", "app.cli", "cycle", tiny / "run.toml", "--store", tmp_path / "store"]
        ended = on_small_disk(tmp_path, kilobytes, *cycle)
        assert ended.returncode == 2, ended.stderr[-2000:]
        assert "no space left" in ended.stderr.splitlines()[-1] and "Traceback" not in ended.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare to mount a disk for one process")
def test_a_mapped_file_on_a_full_disk_is_an_error_not_the_end_of_the_process(tmp_path: Path) -> None:
    """A page of a mapped file that finds no room is a SIGBUS, which nobody can catch."""
    code = "import sys, pathlib; from retriever.negatives import create_negative_set as create; "
    code += "create(pathlib.Path(sys.argv[1]), 2000, 200, 1)"
    ended = on_small_disk(tmp_path, 1000, "-c", code, tmp_path)
    assert ended.returncode == 1 and "No space left on device" in ended.stderr


@contextmanager
def held(lock: Path) -> Iterator[int]:
    """Let another process hold ``lock``; give its id."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin is not None and holder.stdout is not None
    with holder:
        assert holder.stdout.readline() == b"held\n"
        yield holder.pid
        holder.stdin.close()


WRITERS: list[tuple[str, str, list[str]]] = [
    ("checkpoints", "cycle", ["{run}", "--resume"]),
    ("checkpoints", "train", ["{run}", "--resume"]),
    ("checkpoints", "cycle", ["{run}", "--new"]),
    ("generations", "train", ["{run}", "--new"]),
    ("checkpoints", "index", ["{data}", "--model", "{model}"]),
    ("generations", "index", ["{data}", "--model", "{model}"]),
    ("generations", "index", []),
    ("generations", "refresh", ["{run}"]),
    ("negatives", "refresh", ["{run}"]),
    ("negatives", "mine", ["{run}"]),
]


@pytest.mark.parametrize(("kind", "command", "arguments"), WRITERS)
def test_two_writers(
    hone: Hone, trained: Path, tiny: Path, tmp_path: Path, kind: str, command: str, arguments: list[str]
) -> None:
    # Not finished, so that there is something to train, and not of this configuration.
    config = write_run(tmp_path / "run.toml", tiny / "data", tiny / "model", ("max_steps = 6", "max_steps = 9"))
    named: dict[str, Any] = {"run": config, "data": tiny / "data", "model": tiny / "model"}
    with unchanged(trained), held(trained / f"locks/{kind}.lock") as pid:
        answer = hone(command, *(argument.format(**named) for argument in arguments), "--store", trained)
        assert f"process {pid} is already writing {kind}" in answer.complaint
    assert not list(tmp_path.glob("store.old-*"))


def reported(store: Path, event: str) -> list[dict[str, Any]]:
    return [line for line in read_lines(store / "events.jsonl") if line["event"] == event]


@pytest.mark.slow
def test_ctrl_c_saves_a_checkpoint_and_the_same_command_finishes(tmp_path: Path, tiny: Path) -> None:
    store = tmp_path / "store"
    config = write_run(
        tmp_path / "run.toml",
        tiny / "data",
        tiny / "model",
        ("max_steps = 6", "max_steps = 60"),
        ('"steps:3"', '"steps:50"\nadopt = "scheduled"\nlag = 5'),
    )
    command = [sys.executable, "-m", "app.cli", "train", str(config), "--store", str(store), "--json"]
    training = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not reported(store, "adopted"):
        assert training.poll() is None and time.monotonic() < deadline, training.communicate()
        time.sleep(0.05)
    training.send_signal(signal.SIGINT)
    out, err = training.communicate(timeout=60)
    assert training.returncode == 2, err
    stopped = json.loads(out)
    assert stopped["reason"] == "interrupted" and 0 < stopped["step"] < 60
    assert err.splitlines()[-1].startswith(f"hone: interrupted at step {stopped['step']}; checkpoint ")
    saved = Store(store).checkpoints.get()
    assert saved is not None and saved.facts["step"] == stopped["step"] and saved.number == stopped["checkpoint"]

    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["step"] == 60
    assert [event["step"] for event in reported(store, "resumed")] == [stopped["step"]]
    steps = [event["step"] for event in reported(store, "step")]
    assert steps == list(range(1, 61)), "no step twice, none left out"
