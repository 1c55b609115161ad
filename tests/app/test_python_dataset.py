import json
import sysconfig
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.python_dataset import (
    MAX_FILES_PER_PACKAGE,
    PythonDatasetConfig,
    PythonDatasetSummary,
    write_python_dataset,
)
from retriever.errors import InputError

SMALL = PythonDatasetConfig(passages=60, train=30, dev=10, test=10, per_package=8, smallest=1)


def definition(word: str, number: int, documented: bool = True) -> str:
    """A function that shares few token triples with another word's or number's."""
    docstring = f"    '''Count the {word} of group {number} in {word}{number}.\n\n    hidden words\n    '''\n"
    body = "".join(f"    {word}_{number}_{line} = {word}{line}({number}, {word})\n" for line in range(3))
    return f"def {word}_{number}({word}):\n{docstring if documented else ''}{body}\n"


def make_root(root: Path, packages: int = 20, each: int = 6, reverse: bool = False) -> Path:
    """Packages of two files with ``each`` documented functions and two without a docstring."""
    names = [f"pack{chr(97 + index)}" for index in range(packages)]
    for name in reversed(names) if reverse else names:
        (root / name).mkdir(parents=True)
        source = [definition(name, number) for number in range(each)]
        (root / name / "__init__.py").write_text("".join(source[: each // 2]), encoding="utf-8")
        rest = source[each // 2 :] + [definition(name, number, documented=False) for number in (98, 99)]
        (root / name / "inner.py").write_text("".join(rest), encoding="utf-8")
    return root


def write_package(root: Path, name: str, sources: Sequence[str]) -> None:
    (root / name).mkdir()
    for number, source in enumerate(sources):
        (root / name / f"part{number}.py").write_text(source, encoding="utf-8")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def records(path: Path) -> dict[str, str]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {row["_id"]: row["text"] for row in rows}


def qrels(folder: Path, split: str) -> list[list[str]]:
    return [line.split("\t") for line in (folder / f"qrels/{split}.tsv").read_text().splitlines()[1:]]


def test_the_folder_holds_what_was_asked(tmp_path: Path) -> None:
    summary = write_python_dataset(tmp_path / "out", SMALL, [make_root(tmp_path / "root")])
    corpus, queries = records(tmp_path / "out/corpus.jsonl"), records(tmp_path / "out/queries.jsonl")
    assert summary.passages == len(corpus) == 60
    assert summary.queries == {"train": 30, "dev": 10, "test": 10} and len(queries) == 50
    rows = {split: qrels(tmp_path / "out", split) for split in ("train", "dev", "test")}
    assert {split: len(found) for split, found in rows.items()} == summary.queries
    for query, passage, score in [row for found in rows.values() for row in found]:
        word, _, number = passage.rpartition(".")[2].partition("_")
        assert queries[query] == f"Count the {word} of group {number} in {word}{number}."
        assert corpus[passage].startswith(f"def {word}_{number}({word}):\n    {word}_{number}_0 =")
        assert score == "1"
    assert not set(queries) & set(corpus), "evaluators drop a hit that has its query's id"
    assert "hidden words" not in "".join(corpus.values())


def test_no_package_is_in_two_splits_and_held_out_ones_give_the_distractors(tmp_path: Path) -> None:
    summary = write_python_dataset(tmp_path / "out", SMALL, [make_root(tmp_path / "root")])
    rows = {split: qrels(tmp_path / "out", split) for split in ("train", "dev", "test")}
    packages = {split: {row[1].split(".")[0] for row in found} for split, found in rows.items()}
    assert packages["dev"] == set(summary.packages["dev"]) and packages["test"] == set(summary.packages["test"])
    assert packages["train"] <= set(summary.packages["train"])
    assert len(set().union(*summary.packages.values())) == sum(map(len, summary.packages.values()))
    assert len(summary.packages["dev"]) >= 5 and len(summary.packages["test"]) >= 5
    distractors = records(tmp_path / "out/corpus.jsonl").keys() - {row[1] for found in rows.values() for row in found}
    assert len(distractors) == 10
    held_out = {*summary.packages["dev"], *summary.packages["test"]}
    assert {name.split(".")[0] for name in distractors} <= held_out, "a query meets its own package's other passages"


def test_a_package_with_too_little_is_passed_over(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    write_package(root, "packtiny", [definition("tiny", 1)])
    config = PythonDatasetConfig(passages=60, train=30, dev=10, test=10, per_package=8, smallest=2)
    summary = write_python_dataset(tmp_path / "out", config, [root])
    assert "packtiny" not in set().union(*summary.packages.values())
    with pytest.raises(InputError, match="lower smallest = 7"):
        write_python_dataset(tmp_path / "other", replace(config, smallest=7), [root])


def test_the_same_packages_give_the_same_bytes_anywhere(tmp_path: Path) -> None:
    one = make_root(tmp_path / "one")
    other = make_root(tmp_path / "deeper" / "other", reverse=True)
    first = write_python_dataset(tmp_path / "out1", SMALL, [one])
    second = write_python_dataset(tmp_path / "out2", SMALL, [other])
    assert first == second
    assert contents(tmp_path / "out1") == contents(tmp_path / "out2")
    write_python_dataset(tmp_path / "out3", PythonDatasetConfig(60, 30, 10, 10, 8, seed=14, smallest=1), [one])
    assert contents(tmp_path / "out3")["qrels/test.tsv"] != contents(tmp_path / "out1")["qrels/test.tsv"]


def test_a_large_package_gives_a_bounded_sample_from_all_its_files(tmp_path: Path) -> None:
    write_package(tmp_path, "huge", [definition(f"huge{n}", n) for n in range(MAX_FILES_PER_PACKAGE + 7)])
    config = PythonDatasetConfig(passages=20, train=20, dev=0, test=0, per_package=20, smallest=1)
    summary = write_python_dataset(tmp_path / "out", config, [tmp_path])
    numbers = sorted(int(name.rpartition("_")[2]) for name in records(tmp_path / "out/corpus.jsonl"))
    assert len(numbers) == 20 and numbers[0] < 40 < 80 < numbers[-1]
    assert summary.dropped["file not sampled"] == 7
    assert summary.dropped["package limit"] == MAX_FILES_PER_PACKAGE - 20


def near_copies() -> list[str]:
    copied = definition("copied", 0)
    return [
        copied + definition("other", 1),
        copied.replace("def copied_0", "def renamed").replace("Count the copied", "Tell how many copied"),
        definition("third", 2).replace("third of group 2 in third2", "OTHER of group 1, in `other1`"),
        "def broken(:\n",
    ]


def test_near_duplicates_and_repeated_queries_are_gone(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    write_package(root, "pack", near_copies())
    config = PythonDatasetConfig(passages=2, train=2, dev=0, test=0, smallest=1)
    summary = write_python_dataset(tmp_path / "out", config, [root])
    texts = "".join(records(tmp_path / "out/corpus.jsonl").values())
    assert texts.count("copied_0_0 =") == 1
    assert texts.count("other_1_0 =") + texts.count("third_2_0 =") == 1
    assert {reason: count for reason, count in summary.dropped.items() if count} == {
        "near-duplicate": 1,
        "duplicate query": 1,
        "unparsable file": 1,
    }


@pytest.mark.parametrize(("dev", "test", "packages"), [(10, 10, 5), (6, 6, 3), (0, 8, 4), (8, 0, 4)])
def test_few_packages_still_give_exact_counts(tmp_path: Path, dev: int, test: int, packages: int) -> None:
    config = PythonDatasetConfig(passages=dev + test + 6, train=6, dev=dev, test=test, smallest=1)
    summary = write_python_dataset(tmp_path / "out", config, [make_root(tmp_path / "root", packages)])
    assert summary.queries == {"train": 6, "dev": dev, "test": test}


def test_too_little_material_says_how_much_there_is(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root", packages=4)
    with pytest.raises(InputError, match=r"4 packages below .*root hold 32 distinct passages, 24 of them with a query"):
        write_python_dataset(tmp_path / "out", SMALL, [root])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"passages": 100}, "passages = 100: .*2000 .* 300 .* 300"),
        ({"passages": 0, "train": 0, "dev": 0, "test": 0}, "passages = 0"),
        ({"dev": -1}, "dev = -1"),
        ({"per_package": 0}, "per_package = 0"),
    ],
)
def test_impossible_numbers_are_refused(fields: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PythonDatasetConfig(**fields)


def test_the_summary_file_tells_the_making(tmp_path: Path) -> None:
    summary = write_python_dataset(tmp_path / "out", SMALL, [make_root(tmp_path / "root")])
    facts: dict[str, Any] = json.loads((tmp_path / "out/dataset.json").read_bytes())
    assert facts["config"] == {
        "passages": 60,
        "train": 30,
        "dev": 10,
        "test": 10,
        "per_package": 8,
        "seed": 13,
        "smallest": 1,
    }
    assert facts["packages"]["test"] == dict.fromkeys(summary.packages["test"])
    assert facts["dropped"] == summary.dropped and facts["queries"] == summary.queries
    assert str(tmp_path) not in (tmp_path / "out/dataset.json").read_text()


def test_an_earlier_data_set_is_replaced_and_anything_else_refused(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    write_python_dataset(tmp_path / "out", SMALL, [root])
    smaller = PythonDatasetConfig(passages=20, train=10, dev=5, test=5, smallest=1)
    assert write_python_dataset(tmp_path / "out", smaller, [root]).passages == 20
    assert len(records(tmp_path / "out/corpus.jsonl")) == 20
    with pytest.raises(InputError, match="name another folder"):
        write_python_dataset(root, SMALL, [root])


def test_progress_ends_at_the_whole(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_python_dataset(
        tmp_path / "out",
        SMALL,
        [make_root(tmp_path / "root")],
        lambda found, wanted: seen.append((found, wanted)),
    )
    assert seen == sorted(seen) and seen[-1] == (60, 60) and len(seen) > 3


def test_the_standard_library_alone_suffices_for_a_small_set(tmp_path: Path) -> None:
    config = PythonDatasetConfig(passages=60, train=30, dev=10, test=10, per_package=10, smallest=5)
    summary: PythonDatasetSummary = write_python_dataset(tmp_path / "out", config, [Path(sysconfig.get_path("stdlib"))])
    assert summary.passages == 60 and len(summary.packages["test"]) >= 5
    assert all(4 <= len(text.split()) <= 40 for text in records(tmp_path / "out/queries.jsonl").values())


def test_what_is_cut_is_counted(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    whole = write_python_dataset(tmp_path / "whole", SMALL, [root])
    cut = write_python_dataset(tmp_path / "cut", SMALL, [root], None, lambda text: text[:60])
    assert whole.shortened == 0 and cut.shortened == 60
    assert {len(text) for text in records(tmp_path / "cut/corpus.jsonl").values()} == {60}
    assert json.loads((tmp_path / "cut/dataset.json").read_bytes())["shortened"] == 60
