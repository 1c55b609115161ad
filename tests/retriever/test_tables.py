import gzip
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retriever.errors import InputError
from retriever.tables import open_hub_table, open_table

ROWS = [{"query": "é, “one”", "pos": "a\nb", "n": "1"}, {"query": "two", "pos": 'say "b"', "n": "2"}]


def write(path: Path, rows: Sequence[dict[str, Any]] = ROWS) -> Path:
    """Write ``rows`` in the format that the name of ``path`` tells."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
        return path
    if name.endswith(".csv"):
        quoted = [[f'"{value.replace(chr(34), chr(34) * 2)}"' for value in row.values()] for row in rows]
        text = "".join(",".join(line) + "\r\n" for line in [list(rows[0]), *quoted])
    elif name.endswith(".json"):
        text = json.dumps(list(rows), indent=1)
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def read(source: Path, split: str = "train", columns: Sequence[str] = ()) -> list[dict[str, Any]]:
    return [dict(row) for _, row in open_table(str(source), split).rows(columns)]


@pytest.mark.parametrize(
    "name", ["a.parquet", "a.jsonl", "a.json", "a.csv", "a.jsonl.gz", "a.json.gz", "a.csv.gz", "lines.with.dots.jsonl"]
)
def test_each_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name)
    assert open_table(str(path), "train").columns == ("query", "pos", "n")
    assert read(path) == ROWS
    wanted = read(path, columns=["pos", "query"])
    assert [(row["query"], row["pos"]) for row in wanted] == [(row["query"], row["pos"]) for row in ROWS]


def test_a_json_file_may_hold_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + b'{"query": "x"}\n\n{"query": "y"}\n')
    assert read(tmp_path / "a.json") == [{"query": "x"}, {"query": "y"}]


def test_places_are_lines_or_rows(tmp_path: Path) -> None:
    names = {
        "a.jsonl": [":1", ":2"],
        "a.csv": [":3", ":4"],
        "a.json": [" row 1", " row 2"],
        "a.parquet": [" row 1", " row 2"],
    }
    for name, places in names.items():
        path = write(tmp_path / name)
        assert [place for place, _ in open_table(str(path), "train").rows(())] == [f"{path}{end}" for end in places]


def test_ids_of_a_csv_file_stay_as_they_are_written(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [{"id": "007", "text": "null"}, {"id": "1e5", "text": ""}])
    assert read(path) == [{"id": "007", "text": "null"}, {"id": "1e5", "text": ""}]


def test_parquet_is_read_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"query": [f"q{i}" for i in range(5000)], "other": ["x"] * 5000}), path)
    rows = list(open_table(str(path), "train").rows(["query"]))
    assert [row for _, row in rows] == [{"query": f"q{i}"} for i in range(5000)]
    assert rows[-1][0] == f"{path} row 5000"


def test_a_folder_has_its_splits_in_files_and_shards(tmp_path: Path) -> None:
    for number, name in enumerate(["train-00001-of-2.parquet", "train-00000-of-2.parquet", "dev.jsonl", "test/x.csv"]):
        write(tmp_path / name, [{"query": name, "n": str(number)}])
    write(tmp_path / "training.jsonl", [{"query": "another"}])
    assert [row["n"] for row in read(tmp_path, "train")] == ["1", "0"]
    assert [row["n"] for row in read(tmp_path, "dev")] == ["2"]
    assert [row["n"] for row in read(tmp_path, "test")] == ["3"]
    with pytest.raises(InputError, match=r"no file of a split 'validation'.*dev\.jsonl, test/x\.csv"):
        open_table(str(tmp_path), "validation")


def test_columns_that_begin_late_are_seen(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [*([{"query": "x"}] * 500), {"query": "y", "neg": "z"}])
    assert open_table(str(path), "train").columns == ("query", "neg")


@pytest.mark.parametrize("source", ["absent.jsonl", "./absent", "/absent/folder", "a/b/c", "x.csv.gz"])
def test_a_file_that_is_not_there_is_not_sought_on_the_hub(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError):
        open_table(source, "train")


def test_what_a_single_file_does_not_have_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl")
    with pytest.raises(InputError, match="one file has no split 'dev'"):
        open_table(str(path), "dev")
    with pytest.raises(InputError, match=r"subset.* is for the hub"):
        open_table(str(path), "train", "en")
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"a\.xlsx: unknown kind of file; there are \.parquet"):
        open_table(str(tmp_path / "a.xlsx"), "train")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b"", "no rows"),
        ("a.json", b"[]", "no rows"),
        ("a.csv", b"query,pos\n", "no rows"),
        ("a.jsonl", b'{"query": "x"}\n{', "a.jsonl:2: malformed JSON"),
        ("a.json", b'[{"query": "x"},', "malformed JSON"),
        ("a.json", b'[{"query": "x"}, 3]', "row 2: not a JSON object"),
        ("a.json", b"3", "a.json:1: not a JSON object"),
        ("a.json", b"\xff\xfe", "whole UTF-8 text"),
        ("a.csv", b"query,pos\nx,y,z\n", "a.csv:2: more fields than the header"),
        ("a.csv", b'query,pos\nx,"y\n', "cannot be read"),
        ("a.csv", b"query,pos\nx,caf\xe9\n", "in UTF-8"),
        ("a.csv", b"query,pos\nx," + b"y" * 200_000, "field larger than field limit"),
        ("a.parquet", b"PAR1 not really", "cannot be read"),
        ("a.parquet", b"", "cannot be read"),
        ("a.csv.gz", b"plain", "cannot be read"),
        ("a.json.gz", gzip.compress(b"[1" + bytes(range(256)) * 9, mtime=0)[:-40], "a.json.gz"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        list(open_table(str(path), "train").rows(()))
    assert str(path) in str(caught.value) and message in str(caught.value)


def test_a_truncated_parquet_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"a\.parquet: cannot be read after row 0"):
        open_table(str(path), "train")


@pytest.mark.slow
def test_a_data_set_of_the_hub_is_streamed(tmp_path: Path) -> None:
    """The library takes a folder in place of an id, so the same code runs without a network."""
    write(tmp_path / "train.jsonl")
    table = open_hub_table(str(tmp_path), "train")
    assert table.columns == ("query", "pos", "n")
    assert [dict(row) for _, row in table.rows(["pos"])] == [{"pos": row["pos"]} for row in ROWS]
    assert next(place for place, _ in table.rows(())) == f"{tmp_path}[train] row 1"
    with pytest.raises(InputError, match="Available splits"):
        open_hub_table(str(tmp_path), "validation")


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_is_one_error() -> None:
    code = "from retriever.tables import open_table; open_table('nobody/nothing', 'train')"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("retriever.errors.InputError: nobody/nothing[train]: no such file or folder, and the hub")
