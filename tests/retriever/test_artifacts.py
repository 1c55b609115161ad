import json
import os
import threading
import time
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retriever.artifacts import BEST, CURRENT, FORMAT, SERVED, Series
from retriever.errors import BusyError, CorruptError, FormatError, InputError, StoreError

FACTS = st.dictionaries(
    st.text(),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    ),
)
FILE_NAMES = st.from_regex(r"[a-z]{1,8}(/[a-z]{1,8}\.npy)?", fullmatch=True)


def open_series(root: Path) -> Series:
    (root / "generations").mkdir(parents=True, exist_ok=True)
    origin = {"code_version": "1+abc", "config_sha256": "def"}
    return Series(root / "generations", root / "locks" / "generations.lock", origin)


@pytest.fixture
def series(tmp_path: Path) -> Series:
    return open_series(tmp_path)


def publish(series: Series, text: str = "text", pointer: str = CURRENT) -> int:
    with series.stage({"checkpoint": 4, "corpus": 1}, pointer) as draft:
        (draft.path / "index").write_text(text)
        draft.facts["text"] = text
    return draft.number


def listing(series: Series) -> list[str]:
    return sorted(path.name for path in series.folder.iterdir())


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "removed":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.write_bytes(bytes([data[0] ^ 1]) + data[1:])


def test_before_the_first_there_is_nothing(series: Series) -> None:
    assert series.get() is None and series.pointed(CURRENT) is None
    assert series.intact(CURRENT, pytest.fail) is None
    assert series.numbers() == [] and series.pointers() == {}


def test_a_manifest_says_what_the_contract_names(series: Series) -> None:
    number = publish(series, "abc")
    artifact = series.at(number)
    written = json.loads((artifact.path / "manifest.json").read_bytes())
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert time.strptime(written.pop("created"), "%Y-%m-%dT%H:%M:%SZ")
    assert written == {
        "format": 1,
        "kind": "generations",
        "number": number,
        "code_version": "1+abc",
        "config_sha256": "def",
        "parents": {"checkpoint": 4, "corpus": 1},
        "files": {"index": {"bytes": 3, "sha256": digest}},
        "facts": {"text": "abc"},
    }
    assert artifact.path.name == "000000" and artifact.sha256("index") == digest
    assert artifact.parents == {"checkpoint": 4, "corpus": 1}


@settings(max_examples=30, deadline=None)
@given(
    facts=FACTS,
    parents=st.dictionaries(st.text(), st.integers(0, 10**6)),
    files=st.dictionaries(FILE_NAMES, st.binary(max_size=64), min_size=1),
)
def test_manifests_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    facts: dict[str, Any],
    parents: dict[str, int],
    files: dict[str, bytes],
) -> None:
    folders = {name.partition("/")[0] for name in files if "/" in name}
    files = {name: data for name, data in files.items() if name not in folders}
    series = open_series(tmp_path_factory.mktemp("series"))
    with series.stage(parents) as draft:
        for name, data in files.items():
            (draft.path / name).parent.mkdir(exist_ok=True)
            (draft.path / name).write_bytes(data)
        draft.facts.update(facts)
    artifact = series.get()
    assert artifact is not None
    artifact.verify()
    assert artifact.facts == facts and artifact.parents == parents
    assert set(artifact.manifest["files"]) == set(files)
    assert {name: (artifact.path / name).read_bytes() for name in files} == files


def test_an_error_while_staging_leaves_no_trace(series: Series) -> None:
    publish(series)
    before = listing(series)
    with pytest.raises(ZeroDivisionError), series.stage({}) as draft:
        (draft.path / "index").write_text(str(1 / len(draft.facts)))
    assert listing(series) == before
    assert publish(series) == 1


def test_a_draft_is_out_of_sight_until_it_is_whole(series: Series) -> None:
    with series.stage({}) as draft:
        (draft.path / "index").write_text("half")
        assert series.numbers() == [] and series.get() is None
        assert draft.path.name.startswith(".tmp-")
    assert series.numbers() == [0]


def test_the_pointer_of_choice_moves_and_no_other(series: Series) -> None:
    publish(series)
    publish(series, pointer=SERVED)
    series.point(BEST, 0)
    assert series.pointers() == {BEST: 0, CURRENT: 0, SERVED: 1}
    series.point(SERVED, 0)
    assert series.pointed(SERVED) == 0
    assert (series.folder / SERVED).read_text() == "000000\n"


def test_a_pointer_names_what_exists_and_has_a_plain_name(series: Series) -> None:
    publish(series)
    with pytest.raises(StoreError, match="no such artifact"):
        series.point("WARMUP", 1)
    for name in ("../CURRENT", "", "two words", ".hidden", "a/b"):
        with pytest.raises(InputError, match="letters, digits and _"):
            series.point(name, 0)
    assert series.pointers() == {CURRENT: 0}


def test_a_second_writer_is_refused(tmp_path: Path, series: Series) -> None:
    with series.stage({}) as draft:
        (draft.path / "index").write_text("x")
        with pytest.raises(BusyError, match="already writing generations"), open_series(tmp_path).stage({}):
            pass
        assert draft.path.is_dir()  # the one refused swept nothing
    assert publish(open_series(tmp_path)) == 1


def test_a_writer_may_nest_and_lets_go_at_the_end(tmp_path: Path, series: Series) -> None:
    with series.writer():
        publish(series)
        publish(series)
        series.remove(0)
        with pytest.raises(BusyError), open_series(tmp_path).writer():
            pass
    with open_series(tmp_path).writer():
        assert series.numbers() == [1]


def test_the_next_writer_sweeps_what_a_dead_one_left(tmp_path: Path, series: Series) -> None:
    publish(series)
    (series.folder / ".tmp-stage" / "model").mkdir(parents=True)
    (series.folder / ".tmp-stage" / "model" / "weights").write_text("half")
    (series.folder / ".tmp-pointer").write_text("0000")
    with open_series(tmp_path).writer():
        assert listing(series) == ["000000", CURRENT]


def test_a_sweep_does_not_meet_a_pointer_half_moved(
    tmp_path: Path, series: Series, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pointer may be moved while another process becomes the writer and sweeps: rollback needs no writer lock."""
    publish(series)
    replace, swept = os.replace, Event()

    def become_writer() -> None:
        with open_series(tmp_path).writer():
            swept.set()

    sweeper = threading.Thread(target=become_writer)

    def replace_late(*names: Any) -> None:
        sweeper.start()
        assert not swept.wait(0.2)
        replace(*names)

    monkeypatch.setattr(os, "replace", replace_late)
    series.point(SERVED, 0)
    sweeper.join()
    assert swept.is_set() and series.pointed(SERVED) == 0


def test_an_orphan_of_a_crash_keeps_its_number(series: Series) -> None:
    """A crash between rename and pointer leaves a whole artifact that no pointer names."""
    publish(series)
    publish(series)
    series.point(CURRENT, 0)
    assert publish(series) == 2 and series.pointed(CURRENT) == 2


@pytest.mark.parametrize("how", ["removed", "truncated", "altered"])
@pytest.mark.parametrize("name", ["index", "manifest.json"])
def test_a_damaged_artifact_falls_back_to_the_one_before(series: Series, name: str, how: str) -> None:
    for text in ("first", "second", "third"):
        publish(series, text)
    damage(series.path(2) / name, how)
    warnings: list[str] = []
    artifact = series.intact(CURRENT, warnings.append)
    assert artifact is not None and artifact.number == 1 and artifact.facts["text"] == "second"
    assert len(warnings) == 1 and "using the one before it" in warnings[0]
    if not (name == "manifest.json" and how == "removed"):
        assert str(series.path(2) / name) in warnings[0]


def test_no_flipped_bit_of_a_manifest_ends_a_reader(series: Series) -> None:
    publish(series, "first")
    path = series.path(publish(series, "second")) / "manifest.json"
    data = path.read_bytes()
    fell_back = 0
    for at in range(len(data)):
        for bit in (1, 16):
            path.write_bytes(data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])
            warnings: list[str] = []
            artifact = series.intact(CURRENT, warnings.append)
            assert artifact is not None and artifact.number == (0 if warnings else 1)
            fell_back += artifact.number == 0
    assert fell_back > len(data)


def test_no_intact_artifact_at_all_is_an_error(series: Series) -> None:
    for _ in range(2):
        damage(series.path(publish(series)) / "index", "altered")
    warnings: list[str] = []
    with pytest.raises(CorruptError, match="no intact artifact up to 1"):
        series.intact(CURRENT, warnings.append)
    assert len(warnings) == 2


def test_only_what_fits_stands_in_for_a_damaged_artifact(series: Series) -> None:
    for text in ("first", "second", "third"):
        publish(series, text)
    assert series.intact(CURRENT, pytest.fail, lambda _: False) is not None, (
        "what the pointer names itself is not asked"
    )
    damage(series.path(2) / "index", "altered")
    found = series.intact(CURRENT, list[str]().append, lambda artifact: artifact.facts["text"] == "first")
    assert found is not None and found.number == 0


def test_a_pointer_to_what_is_gone_falls_back_too(series: Series) -> None:
    publish(series, "first")
    publish(series)
    series.remove(1)
    warnings: list[str] = []
    artifact = series.intact(CURRENT, warnings.append)
    assert artifact is not None and artifact.number == 0
    assert len(warnings) == 1 and "names 1, which is gone" in warnings[0]
    with pytest.raises(StoreError, match="no such artifact"):
        series.get()


@pytest.mark.parametrize("how", ["removed", "truncated", "altered"])
def test_verify_names_the_file(series: Series, how: str) -> None:
    artifact = series.at(publish(series))
    artifact.verify()
    damage(artifact.path / "index", how)
    with pytest.raises(CorruptError, match=str(artifact.path / "index")):
        artifact.verify()


@pytest.mark.parametrize("text", ["", "two", "0x1", "1.5", "\0", "{}"])
def test_a_pointer_that_is_no_number_is_named(series: Series, text: str) -> None:
    publish(series)
    (series.folder / CURRENT).write_text(text)
    with pytest.raises(CorruptError, match="CURRENT: not a pointer"):
        series.get()


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"3", b'{"format": 1}', b'{"format": "1"}', b"\xff", b"null"])
def test_a_manifest_that_is_none_is_named(series: Series, text: bytes) -> None:
    path = series.path(publish(series)) / "manifest.json"
    path.write_bytes(text)
    with pytest.raises(CorruptError, match=r"manifest\.json: not a manifest"):
        series.at(0)


def test_a_manifest_of_a_newer_format_is_refused_not_skipped(series: Series) -> None:
    publish(series)
    path = series.path(publish(series)) / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": FORMAT + 1}))
    with pytest.raises(FormatError, match=f"format {FORMAT + 1} is newer"):
        series.get()
    with pytest.raises(FormatError):
        series.intact(CURRENT, pytest.fail)


def test_remove_lets_an_artifact_vanish(series: Series) -> None:
    publish(series)
    publish(series)
    series.remove(0)
    assert listing(series) == ["000001", CURRENT]


def test_age_counts_from_publication(series: Series) -> None:
    number = publish(series)
    assert 0 <= series.age_seconds(number) < 60
    os.utime(series.path(number), (0, time.time() - 3600))
    assert 3600 <= series.age_seconds(number) < 3660
