import json
import os
import resource
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from threading import Event, Thread, Timer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retriever.durable import (
    CHUNK_BYTES,
    LOCK_TRY_SECONDS,
    appearing,
    append_line,
    append_lines,
    exclusive,
    link_tree,
    publish_folder,
    read_lines,
    remove_folder,
    sha256_file,
    sha256_json,
    write_atomic,
)
from retriever.errors import BusyError, InputError

fork = get_context("fork")
JSON_VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


def in_child(target: Callable[..., None], *args: Any) -> int:
    """Run ``target`` in a process of its own and return its exit code."""
    child = fork.Process(target=target, args=args)
    child.start()
    child.join()
    assert child.exitcode is not None
    return child.exitcode


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_write_atomic_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "pointer"
    write_atomic(path, b"a longer first text")
    write_atomic(path, b"second")
    assert path.read_bytes() == b"second"
    assert names(tmp_path) == ["pointer"]


def test_write_atomic_leaves_nothing_behind_when_it_fails(tmp_path: Path) -> None:
    (tmp_path / "pointer").mkdir()
    with pytest.raises(OSError, match="pointer"):
        write_atomic(tmp_path / "pointer", b"data")
    assert names(tmp_path) == ["pointer"]


def test_publish_folder_never_replaces_another(tmp_path: Path) -> None:
    for name in ("stage", "target"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    with pytest.raises(OSError, match="target"):
        publish_folder(tmp_path / "stage", tmp_path / "target")
    assert (tmp_path / "target" / "file").read_text() == "target"
    publish_folder(tmp_path / "stage", tmp_path / "new")
    assert names(tmp_path / "new") == ["file"] and not (tmp_path / "stage").exists()


def test_what_appears_is_flushed_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []

    def flush(descriptor: int) -> None:
        flushed.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))

    monkeypatch.setattr(os, "fsync", flush)
    with appearing(tmp_path / "new" / "lines") as stage:
        stage.write_text("one")
        assert names(tmp_path / "new") == [stage.name]
    assert (tmp_path / "new" / "lines").read_text() == "one" and flushed == [str(stage), str(stage.parent)]
    flushed.clear()
    with appearing(tmp_path / "model") as stage:
        (stage / "deep").mkdir(parents=True)
        (stage / "deep" / "file").write_text("x")
    assert names(tmp_path) == ["model", "model/deep", "model/deep/file", "new", "new/lines"]
    assert flushed == [f"{stage}/deep/file", f"{stage}/deep", f"{stage}", f"{tmp_path}"]


@pytest.mark.parametrize("kind", ["file", "folder", "nothing"])
def test_what_fails_to_appear_leaves_nothing_behind(tmp_path: Path, kind: str) -> None:
    def fill(stage: Path) -> None:
        if kind == "file":
            stage.write_text("half")
        elif kind == "folder":
            (stage / "deep").mkdir(parents=True)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), appearing(tmp_path / "out") as stage:
        fill(stage)
    assert names(tmp_path) == []


def test_remove_folder_removes_all_of_it(tmp_path: Path) -> None:
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "deep" / "file").write_text("x")
    remove_folder(tmp_path / "folder")
    assert names(tmp_path) == []


def test_link_tree_shares_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "model" / "deep").mkdir(parents=True)
    (tmp_path / "model" / "deep" / "weights").write_bytes(b"w" * 100)
    link_tree(tmp_path / "model", tmp_path / "copy")
    copy = tmp_path / "copy" / "deep" / "weights"
    assert copy.samefile(tmp_path / "model" / "deep" / "weights")
    remove_folder(tmp_path / "model")
    assert copy.read_bytes() == b"w" * 100


def test_link_tree_copies_where_links_are_not_possible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no links between two disks")

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"w")
    monkeypatch.setattr(os, "link", refuse)
    link_tree(tmp_path / "model", tmp_path / "copy")
    assert (tmp_path / "copy" / "weights").read_bytes() == b"w"
    assert not (tmp_path / "copy" / "weights").samefile(tmp_path / "model" / "weights")


def test_link_tree_takes_what_a_symbolic_link_names(tmp_path: Path) -> None:
    """Downloaded models are folders of relative links into a cache."""
    (tmp_path / "cache" / "model").mkdir(parents=True)
    (tmp_path / "cache" / "blob").write_bytes(b"w")
    (tmp_path / "cache" / "model" / "weights").symlink_to("../blob")
    link_tree(tmp_path / "cache" / "model", tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere" / "weights").is_symlink()
    assert (tmp_path / "elsewhere" / "weights").read_bytes() == b"w"


def test_sha256_file_reads_across_chunks(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert sha256_file(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    path.write_bytes(b"\0" * (CHUNK_BYTES + 1))
    whole = sha256_file(path)
    with path.open("r+b") as file:
        file.seek(CHUNK_BYTES)
        file.write(b"\1")
    assert sha256_file(path) != whole


@given(st.dictionaries(st.text(), JSON_VALUES, min_size=1))
def test_sha256_json_does_not_see_the_order_of_keys(value: dict[str, Any]) -> None:
    backwards = dict(reversed(value.items()))
    assert sha256_json(value) == sha256_json(backwards) == sha256_json(json.loads(json.dumps(value)))
    assert sha256_json(value) != sha256_json({**value, next(iter(value)): "other than any drawn value \0\0"})


@given(records=st.lists(st.dictionaries(st.text(), JSON_VALUES), max_size=5))
def test_lines_round_trip(tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]]) -> None:
    path = tmp_path_factory.mktemp("lines") / "log.jsonl"
    for record in records:
        append_line(path, record)
    append_lines(path, records)
    assert read_lines(path) == records * 2


def test_a_line_torn_anywhere_neither_counts_nor_merges(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    append_line(path, {"step": 1})
    whole = path.read_bytes()
    torn = b'{"step":2}'
    for cut in range(len(torn) + 1):
        path.write_bytes(whole + torn[:cut])
        assert read_lines(path) == [{"step": 1}]
        append_line(path, {"step": 3})
        assert read_lines(path) == [{"step": 1}, {"step": 3}], cut


@pytest.mark.parametrize("before", [b"", b"{}\n", b'{"a":"' + b"x" * 5000 + b'"}\n'])
@pytest.mark.parametrize("torn", [0, 1, 4093, 4095, 4096, 4097, 8191, 8192, 8193, 12288])
def test_a_long_torn_line_is_cut_away_whole(tmp_path: Path, before: bytes, torn: int) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(before + b"x" * torn)
    append_line(path, {"step": 3})
    assert path.read_bytes() == before + b'{"step":3}\n'


def test_a_complete_line_that_is_not_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"{}\n{broken\n{}\n")
    with pytest.raises(InputError, match=r"log\.jsonl:2: not a JSON line"):
        read_lines(path)
    assert read_lines(tmp_path / "absent.jsonl") == []


def _append_against_a_full_disk(path: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, resource.RLIM_INFINITY))
    try:
        append_line(path, {"step": 2, "set": 7})
    except OSError:
        os._exit(3)


def test_a_line_that_does_not_fit_on_the_disk_is_an_error(tmp_path: Path) -> None:
    """The system writes the part that fits and reports success for it."""
    path = tmp_path / "log.jsonl"
    append_line(path, {"step": 1})
    assert in_child(_append_against_a_full_disk, path) == 3
    assert read_lines(path) == [{"step": 1}]
    append_line(path, {"step": 3})
    assert read_lines(path) == [{"step": 1}, {"step": 3}]


def _append_many(path: Path, writer: int) -> None:
    for number in range(50):
        append_line(path, {"writer": writer, "number": number}, flush=False)


def test_writers_of_one_log_do_not_mix_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    children = [fork.Process(target=_append_many, args=(path, writer)) for writer in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    lines = read_lines(path)
    for writer in range(4):
        assert [line["number"] for line in lines if line["writer"] == writer] == list(range(50))


def _try_to_lock(lock: Path) -> None:
    try:
        with exclusive(lock, "generations"):
            pass
    except BusyError as error:
        os._exit(3 if f"process {os.getppid()} is already writing generations" in str(error) else 4)


def test_a_held_lock_is_refused_and_names_its_owner(tmp_path: Path) -> None:
    lock = tmp_path / "locks" / "generations.lock"
    with exclusive(lock, "generations"):
        assert in_child(_try_to_lock, lock) == 3
        with pytest.raises(BusyError, match=str(os.getpid())), exclusive(lock, "generations"):
            pass
    assert in_child(_try_to_lock, lock) == 0


def test_a_lock_that_is_held_for_an_instant_is_waited_for(tmp_path: Path) -> None:
    """`hone train --refresher elsewhere` looks in this way whether a refresher is there: one that starts then stays."""
    held, let_go = Event(), Event()

    def look() -> None:
        with exclusive(tmp_path / "lock", "generations"):
            held.set()
            let_go.wait(20)

    looking = Thread(target=look)
    looking.start()
    assert held.wait(20)
    Timer(LOCK_TRY_SECONDS / 2, let_go.set).start()
    with exclusive(tmp_path / "lock", "generations"):
        looking.join()


def _die_with_lock(lock: Path) -> None:
    with exclusive(lock, "generations"):
        os._exit(9)


def test_a_dead_process_holds_no_lock(tmp_path: Path) -> None:
    lock = tmp_path / "generations.lock"
    assert in_child(_die_with_lock, lock) == 9
    with exclusive(lock, "generations"):
        assert lock.read_text() == str(os.getpid())
