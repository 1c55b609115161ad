"""A publish is cut short at every one of its filesystem steps; a reader then sees the old or the new, whole."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from retriever.artifacts import CURRENT, Artifact
from retriever.ingest import ingest_corpus
from retriever.store import Store, code_version
from tests.faults import KILLED, Steps, counted, full_disk, run_and_kill
from tests.stand_ins import write_tiny_data

Action = Callable[[Store], object]
WAYS = pytest.mark.parametrize("way", ["error", "kill"])


def publish(store: Store, text: str = "new") -> None:
    with store.generations.stage({"checkpoint": 0}) as draft:
        (draft.path / "model").mkdir()
        (draft.path / "model" / "weights").write_text(text * 100)
        (draft.path / "index").write_text(text)
        draft.facts["text"] = text


def text_of(artifact: Artifact | None) -> str:
    """Return what ``publish`` wrote, after comparing every file with the manifest."""
    assert artifact is not None
    artifact.verify()
    text = (artifact.path / "index").read_text()
    assert (artifact.path / "model" / "weights").read_text() == text * 100
    assert artifact.facts["text"] == text
    return text


def hidden(store: Store) -> list[str]:
    return [path.name for path in store.root.rglob(".tmp-*")]


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """A store with three generations and what a writer that died before left behind."""
    code_version()  # read once, so that its file accesses are no steps of a publish
    store = Store(tmp_path / "template", create=True)
    for text in ("oldest", "older", "old"):
        publish(store, text)
    (store.generations.folder / ".tmp-stage" / "model").mkdir(parents=True)
    (store.generations.folder / ".tmp-stage" / "model" / "weights").write_text("half")
    (store.generations.folder / ".tmp-pointer").write_text("0000")
    return store.root


def each_fault(template: Path, way: str, action: Action) -> list[tuple[str, Store]]:
    """Break ``action`` at each of its steps, each time on a fresh store; return (what broke, store after it)."""
    broken: list[tuple[str, Store]] = []
    while True:
        number = len(broken)
        store = Store(Path(shutil.copytree(template, template.with_name(f"{way}-{number}"))))
        if way == "kill":
            code = run_and_kill(partial(action, store), number)
            assert code in (0, KILLED)
            if code == 0:
                return broken
            broken.append((f"killed at step {number}", Store(store.root)))
        else:
            with counted(Steps(number, full_disk)) as steps, suppress(OSError):
                action(store)
            if len(steps.taken) <= number:
                return broken
            broken.append((f"no space at step {number}, {steps.taken[number]}", store))


@WAYS
def test_a_broken_publish_shows_the_old_or_the_new_one_whole(template: Path, way: str) -> None:
    seen = []
    for what, store in each_fault(template, way, publish):
        seen.append(text_of(store.generations.get()))
        assert seen[-1] in ("old", "new"), what
        publish(store, "next")
        assert text_of(store.generations.get()) == "next", what
        assert hidden(store) == [], what
        for number in store.generations.numbers():
            store.generations.at(number).verify()
    assert len(seen) > 40  # the steps are really seen
    if way == "kill":  # an error may also be harmless: a folder that is to be made is there
        assert seen[0] == "old" and seen[-1] == "new" and seen == sorted(seen, reverse=True)


@WAYS
def test_a_broken_pointer_move_leaves_the_pointer_at_the_old_or_the_new_number(template: Path, way: str) -> None:
    faults = each_fault(template, way, lambda store: store.generations.point(CURRENT, 0))
    for what, store in faults:
        assert store.generations.pointed(CURRENT) in (2, 0), what
        publish(store, "next")
        assert text_of(store.generations.get()) == "next" and hidden(store) == [], what
    assert len(faults) > 5


@WAYS
def test_a_broken_removal_leaves_no_half_artifact(template: Path, way: str) -> None:
    faults = each_fault(template, way, lambda store: store.retain("generations", 1, grace_seconds=-1))
    for what, store in faults:
        for number in store.generations.numbers():
            text_of(store.generations.at(number))
        assert text_of(store.generations.get()) == "old", what
        assert 0 not in store.generations.numbers() or 1 in store.generations.numbers(), what
        store.retain("generations", 1, grace_seconds=-1)
        assert store.generations.numbers() == [2] and hidden(store) == [], what
    assert len(faults) > 20


@WAYS
def test_a_store_whose_making_broke_off_is_made_at_the_next_try(tmp_path: Path, way: str) -> None:
    code_version()
    made = 0
    while True:
        root = tmp_path / f"{way}-{made}"
        if way == "kill":
            whole = run_and_kill(partial(Store, root, create=True), made) == 0
        else:
            with counted(Steps(made, full_disk)) as steps, suppress(OSError):
                Store(root, create=True)
            whole = len(steps.taken) <= made
        store = Store(root, create=True)
        publish(store, "first")
        assert text_of(store.generations.get()) == "first" and hidden(store) == []
        if whole:
            break
        made += 1
    assert made > 8


@WAYS
def test_a_broken_ingest_is_made_good_by_the_next(tmp_path: Path, way: str) -> None:
    data = write_tiny_data(tmp_path / "data", passages=8, queries=4)
    code_version()
    Store(tmp_path / "template", create=True)
    for what, store in each_fault(tmp_path / "template", way, lambda store: ingest_corpus(store, data)):
        corpus = ingest_corpus(store, data)
        corpus.verify()
        assert corpus.facts["rows"] == 8 and store.corpora.pointed(CURRENT) == corpus.number, what
        assert hidden(store) == [], what


def test_everything_is_on_the_disk_before_a_name_points_to_it(template: Path) -> None:
    """A power cut drops what was not flushed: bytes before their name, the artifact before its pointer."""
    store = Store(template)
    with counted(Steps()) as steps:
        publish(store)
    folder, artifact = store.generations.folder, store.generations.path(3)
    names = [call for call, _ in steps.taken]
    rename, replace = names.index("rename"), names.index("replace")
    end = len(steps.taken)

    def flushed(start: int, stop: int) -> set[object]:
        return {inode for call, inode in steps.taken[start:stop] if call == "fsync"}

    def inode(path: Path) -> int:
        return path.stat().st_ino

    last_write = max(at for at, name in enumerate(names[:rename]) if name in ("write", "mkdir"))
    assert {inode(artifact), *map(inode, artifact.rglob("*"))} <= flushed(last_write, rename)
    assert names.count("rename") == 1 and names.count("replace") == 1
    assert inode(folder) in flushed(rename, replace)
    assert inode(folder / CURRENT) in flushed(rename, replace)
    assert inode(folder) in flushed(replace, end)
    assert "write" not in names[replace:end]
