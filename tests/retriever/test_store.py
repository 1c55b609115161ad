import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from retriever.artifacts import BEST, CURRENT, FORMAT, SERVED
from retriever.errors import BusyError, CorruptError, FormatError, InputError
from retriever.store import KINDS, Store, code_version, is_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", create=True)


def publish(store: Store, kind: str, parents: Mapping[str, int], pointer: str = CURRENT, age: float = 1000) -> int:
    with store.series(kind).stage(parents, pointer) as draft:
        (draft.path / "file").write_text("x")
    published = time.time() - age
    os.utime(store.series(kind).path(draft.number), (published, published))
    return draft.number


def numbers(store: Store) -> dict[str, list[int]]:
    return {kind: store.series(kind).numbers() for kind in KINDS if store.series(kind).numbers()}


def test_a_new_store_has_the_layout_of_the_contract(store: Store) -> None:
    assert json.loads((store.root / "format.json").read_bytes()) == {"format": 1}
    for folder in (*KINDS, "embeddings", "locks"):
        assert (store.root / folder).is_dir()
    assert is_store(store.root) and store.embeddings == store.root / "embeddings"


def test_opening_never_makes_and_making_never_empties(tmp_path: Path, store: Store) -> None:
    publish(store, "corpora", {})
    assert Store(store.root, create=True).corpora.numbers() == [0]
    with pytest.raises(
        InputError, match=r"no such folder, so not a hone store; `hone index DATA --store .*absent` makes one"
    ):
        Store(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()
    (tmp_path / "empty").mkdir()
    assert Store(tmp_path / "empty", create=True).corpora.numbers() == []
    (tmp_path / "volume" / "lost+found").mkdir(parents=True)
    assert Store(tmp_path / "volume", create=True).corpora.numbers() == []


@pytest.mark.parametrize("name", ["thesis.txt", "checkpoints/step-100/model.bin", "corpora/notes", "lost+found/x"])
def test_a_folder_of_someone_else_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for create in (False, True):
        with pytest.raises(InputError, match="not a hone store"):
            Store(tmp_path, create=create)
        with pytest.raises(InputError, match="not a hone store"):
            Store(tmp_path / name, create=create)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("found", [FORMAT + 1, "2", None])
def test_a_newer_format_is_refused(store: Store, found: object) -> None:
    (store.root / "format.json").write_text(json.dumps({"format": found}))
    for create in (False, True):
        with pytest.raises(FormatError, match="is newer than this hone reads"):
            Store(store.root, create=create)
    assert is_store(store.root)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "\0"])
def test_an_unreadable_format_is_named_with_its_mend(store: Store, text: str) -> None:
    (store.root / "format.json").write_text(text)
    with pytest.raises(InputError, match=r'format\.json: unreadable .* restore it as \{"format": 1\}'):
        Store(store.root)


def test_an_unknown_kind_is_answered_with_the_known(store: Store) -> None:
    with pytest.raises(InputError, match="no kind 'models' of artifact; there are corpora, checkpoints"):
        store.series("models")


def test_a_manifest_names_the_code_and_the_configuration(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", "c0ffee", create=True)
    publish(store, "corpora", {})
    manifest = store.corpora.at(0).manifest
    assert manifest["config_sha256"] == "c0ffee" and manifest["code_version"] == code_version()


def test_two_writers_of_one_kind_are_refused_and_of_two_kinds_are_not(store: Store) -> None:
    other = Store(store.root)
    with store.checkpoints.stage({}), other.generations.stage({}), pytest.raises(BusyError, match="checkpoints"):
        other.retain("checkpoints", keep=1, grace_seconds=0)
    assert numbers(store) == {"checkpoints": [0], "generations": [0]}


def test_adoptions_come_back_in_order_without_the_torn_one(store: Store) -> None:
    assert store.adoptions() == []
    store.record_adoption(100, 1, "aa")
    store.record_adoption(250, 2, "bb")
    path = store.root / "adoptions.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step":300,"set":3,"sh')
    expected = [{"step": 100, "set": 1, "sha256": "aa"}, {"step": 250, "set": 2, "sha256": "bb"}]
    assert store.adoptions() == expected
    store.record_adoption(400, 4, "dd")
    assert store.adoptions() == [*expected, {"step": 400, "set": 4, "sha256": "dd"}]


def test_an_altered_adoption_is_an_error_not_a_gap(store: Store) -> None:
    store.record_adoption(100, 1, "aa")
    path = store.root / "adoptions.jsonl"
    path.write_bytes(b"{" + path.read_bytes())
    with pytest.raises(InputError, match=r"adoptions\.jsonl:1"):
        store.adoptions()


def test_events_are_lines_with_a_time(store: Store) -> None:
    store.log_event("published", kind="generations", number=3)
    event = json.loads((store.root / "events.jsonl").read_text())
    assert abs(event.pop("time") - time.time()) < 60
    assert event == {"event": "published", "kind": "generations", "number": 3}


def test_sweep_removes_what_was_staged_but_not_from_under_a_writer(store: Store) -> None:
    for kind in ("generations", "negatives"):
        (store.series(kind).folder / ".tmp-0").mkdir()
    publish(store, "generations", {})
    (store.generations.folder / ".tmp-0").mkdir()
    with Store(store.root).negatives.writer():
        (store.negatives.folder / ".tmp-1").mkdir()
        store.sweep()
        assert (store.negatives.folder / ".tmp-1").exists()
    assert numbers(store) == {"generations": [0]} and not list(store.root.glob("generations/.tmp-*"))
    store.sweep()
    assert not list(store.root.glob("*/.tmp-*"))


@pytest.mark.parametrize(
    ("keep", "left"), [(0, [5]), (1, [5]), (3, [3, 4, 5]), (6, list(range(6))), (9, list(range(6)))]
)
def test_retain_keeps_the_newest(store: Store, keep: int, left: list[int]) -> None:
    for _ in range(6):
        publish(store, "generations", {})
    removed = store.retain("generations", keep, grace_seconds=60)
    assert store.generations.numbers() == left
    assert removed == [number for number in range(6) if number not in left]
    assert store.retain("generations", keep, grace_seconds=60) == []


def test_retain_keeps_what_a_pointer_of_any_name_names(store: Store) -> None:
    for _ in range(6):
        publish(store, "generations", {})
    for pointer, number in ((SERVED, 1), (BEST, 2), ("WARMUP", 3)):
        store.generations.point(pointer, number)
    assert store.retain("generations", keep=1, grace_seconds=60) == [0, 4]
    store.generations.point("WARMUP", 5)
    assert store.retain("generations", keep=1, grace_seconds=60) == [3]


def test_retain_keeps_the_parents_of_what_is_pointed_at(store: Store) -> None:
    for _ in range(6):
        publish(store, "checkpoints", {})
    publish(store, "generations", {"checkpoint": 0})
    publish(store, "generations", {"checkpoint": 1}, SERVED)
    publish(store, "generations", {"checkpoint": 2})
    publish(store, "negatives", {"generation": 2, "checkpoint": 3})
    assert store.retain("checkpoints", keep=1, grace_seconds=60) == [0, 4]
    assert store.checkpoints.numbers() == [1, 2, 3, 5]


def test_retain_keeps_the_young_and_what_the_caller_names(store: Store) -> None:
    for age in (1000, 1000, 10, 1000):
        publish(store, "negatives", {}, age=age)
    assert store.retain("negatives", keep=1, grace_seconds=60, also=[0]) == [1]
    assert store.retain("negatives", keep=1, grace_seconds=0) == [0, 2]


def test_a_broken_pointer_stops_retain_before_it_removes(store: Store) -> None:
    for _ in range(3):
        publish(store, "generations", {})
    (store.generations.folder / SERVED).write_text("?")
    with pytest.raises(CorruptError, match="SERVED: not a pointer"):
        store.retain("generations", keep=1, grace_seconds=60)
    assert store.generations.numbers() == [0, 1, 2]


def test_a_broken_artifact_of_another_kind_does_not_stop_retain(store: Store) -> None:
    for _ in range(3):
        publish(store, "checkpoints", {})
    publish(store, "generations", {"checkpoint": 0})
    (store.generations.path(0) / "manifest.json").write_text("{")
    assert store.retain("checkpoints", keep=1, grace_seconds=60) == [0, 1]
