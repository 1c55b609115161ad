import gzip
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from retriever.errors import InputError
from retriever.trec import read_qrels, read_run, write_run

BEIR = "query-id\tcorpus-id\tscore\n"


def written(path: Path, content: str | bytes) -> Path:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("suffix", [".tsv", ".tsv.gz"])
def test_qrels_in_beir_layout(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path / f"test{suffix}", BEIR + "q1\td 1\t2\r\n\nquery-id\tü\t0\nq1\td2\t-1")
    assert list(read_qrels(path)) == [(2, "q1", "d 1", 2), (4, "query-id", "ü", 0), (5, "q1", "d2", -1)]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_qrels_in_trec_layout(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path / f"qrels{suffix}", "19335 0 1017759 0\n\n19335\tQ0\t1082489   3\n")
    assert list(read_qrels(path)) == [(1, "19335", "1017759", 0), (3, "19335", "1082489", 3)]


@pytest.mark.parametrize(("content", "number"), [(BEIR + "q\td\t1\n", 2), ("q 0 d 1\n", 1)])
def test_qrels_layout_is_seen_behind_a_byte_order_mark(tmp_path: Path, content: str, number: int) -> None:
    assert list(read_qrels(written(tmp_path / "qrels", "\ufeff" + content))) == [(number, "q", "d", 1)]


def test_qrels_ids_keep_white_space_beyond_ascii(tmp_path: Path) -> None:
    path = written(tmp_path / "qrels", "q\u00a01 0 d\u3000\u2028x 1\n")
    assert list(read_qrels(path)) == [(1, "q\u00a01", "d\u3000\u2028x", 1)]


def test_qrels_without_judgements(tmp_path: Path) -> None:
    assert list(read_qrels(written(tmp_path / "a", ""))) == list(read_qrels(written(tmp_path / "b", BEIR))) == []


def test_qrels_are_read_lazily(tmp_path: Path) -> None:
    judgements = read_qrels(written(tmp_path / "qrels", "q 0 d 1\nbroken\n"))
    assert next(judgements) == (1, "q", "d", 1)
    with pytest.raises(InputError, match="qrels:2: "):
        next(judgements)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("q 0 d\n", ":1: expected the 4 columns 'qid 0 pid relevance' or a BEIR header; found 'q 0 d'"),
        ("q 0 d 1\nq\td\t1\n", r":2: expected the 4 columns .* found 'q\\td\\t1'"),
        (
            "query_id\tdoc_id\trel\nq\td\t1\n",
            ":1: expected the 4 columns .* or a BEIR header; found 'query_id",
        ),
        (BEIR + "q d 1\n", ":2: expected 3 columns between tabs, as the header says; found 'q d 1'"),
        (BEIR + "q\td\t1\nq\t0\td\t1\n", ":3: expected 3 columns between tabs"),
        (BEIR + "q\td\t1\t\n", ":2: expected 3 columns between tabs"),
        ("q 0 d 1\n" + BEIR, ":2: expected the 4 columns"),
        (BEIR + "q\t \t1\n", ":2: expected 3 columns between tabs"),
        (BEIR + "q\td\t1.0\n", ":2: relevance '1.0' is not a whole number"),
        ("q 0 d yes\n", ":1: relevance 'yes' is not a whole number"),
        (b"q 0 d\xff 1\n", r":1: 'd\\\\xff' is not UTF-8"),
        ("x" * 500, f":1: .* found '{'x' * 77}[.]{{3}}'$"),
    ],
)
def test_bad_qrels_name_file_and_line(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = written(tmp_path / "dev.tsv", content)
    with pytest.raises(InputError, match=f"dev.tsv{message}") as caught:
        list(read_qrels(path))
    assert str(caught.value).startswith(f"{path}:")


@pytest.mark.parametrize(
    "content",
    [b"not gzip", gzip.compress(b"q 0 d 1\n" * 999, mtime=0)[:-9], b"\x1f\x8b\x08\x00" + b"\xff" * 30],
    ids=["text", "cut", "broken"],
)
def test_damaged_gzip_is_bad_input(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "qrels.gz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"qrels\.gz: cannot be read"):
        list(read_qrels(path))


def test_missing_file_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none: cannot be read \(No such file or directory\)"):
        read_run(tmp_path / "none")


def test_run_is_sorted_by_score_then_by_falling_passage_id(tmp_path: Path) -> None:
    path = written(tmp_path / "run", "b Q0 d1 1 1e-1 x\na Q0 d9 1 3 x\nb Q0 d10 2 0.1 x\nb\tQ0\td2\t9\t7\tx\n")
    run = read_run(path)
    assert run == {"b": [("d2", 7.0), ("d10", 0.1), ("d1", 0.1)], "a": [("d9", 3.0)]}


@settings(deadline=None, derandomize=True, max_examples=100)
@given(
    scores=st.dictionaries(
        st.text("abzé\u4e00\U0001f600", min_size=1, max_size=3),
        st.sampled_from([0.5, 0.5 + 1e-12, 0.5 - 1e-12, -2.0, 3e38, 1e39, 2e39]),
        min_size=1,
        max_size=8,
    )
)
def test_run_order_is_trec_evals(tmp_path_factory: pytest.TempPathFactory, scores: dict[str, float]) -> None:
    lines = "".join(f"q Q0 {passage} 1 {score!r} x\n" for passage, score in scores.items())
    run = read_run(written(tmp_path_factory.mktemp("order") / "run", lines))
    assert dict(run["q"]) == scores
    for rank, (passage, _) in enumerate(run["q"], 1):
        evaluator = pytrec_eval.RelevanceEvaluator({"q": {passage: 1}}, {"recip_rank"})
        assert evaluator.evaluate({"q": scores})["q"]["recip_rank"] == pytest.approx(1 / rank)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q Q0 d 1 0.5", ":2: expected the 6 columns 'qid Q0 pid rank score tag'; found 'q Q0 d 1 0.5'"),
        ("q Q0 d 1 0.5 my tag", ":2: expected the 6 columns"),
        ("q Q0 d 1 high x", ":2: score 'high' is not a finite number"),
        ("q Q0 d 1 nan x", ":2: score 'nan' is not a finite number"),
        ("q Q0 d 1 -inf x", ":2: score '-inf' is not a finite number"),
        ("q Q0 first 1 0.5 x", ":2: passage 'first' is listed twice for query 'q'"),
    ],
)
def test_bad_run_lines_name_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    path = written(tmp_path / "a.run", f"q Q0 first 1 1 x\n{line}\n")
    with pytest.raises(InputError, match=f"a.run{message}"):
        read_run(path)


column = st.text(st.characters(codec="utf-8", exclude_characters=" \t\n\r\x0b\x0c\ufeff"), min_size=1, max_size=5)
ranking = st.dictionaries(column, st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=6)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(run=st.dictionaries(column, ranking, max_size=4), suffix=st.sampled_from(["", ".gz"]))
def test_a_written_run_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, run: dict[str, dict[str, float]], suffix: str
) -> None:
    path = tmp_path_factory.mktemp("run") / f"out.trec{suffix}"
    best_first = {
        query: sorted(hits.items(), key=lambda hit: (hit[1], hit[0]), reverse=True) for query, hits in run.items()
    }
    assert write_run(path, best_first.items()) == sum(map(len, run.values()))
    assert read_run(path) == best_first
    assert list(read_run(path)) == list(run)


def test_run_lines_and_their_count(tmp_path: Path) -> None:
    path = tmp_path / "out.trec"
    hits = [("d2", float(np.float32(0.1))), ("d1", -3)]
    assert write_run(path, [("q1", hits), ("none", []), ("q2", [("d", 1.0)])], tag="mine") == 3
    lines = path.read_text().splitlines()
    assert lines == [
        f"q1 Q0 d2 1 {float(np.float32(0.1))!r} mine",
        "q1 Q0 d1 2 -3.0 mine",
        "q2 Q0 d 1 1.0 mine",
    ]


def test_same_run_gives_the_same_gzip_bytes(tmp_path: Path) -> None:
    for name in ("a.gz", "b.gz"):
        write_run(tmp_path / name, [("q", [("d", 1.0)])])
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()
    assert (tmp_path / "a.gz").read_bytes()[4:8] == bytes(4), "no time in the header"


@pytest.mark.parametrize("name", ["out.trec", "out.trec.gz"])
def test_a_failing_search_leaves_the_old_run_and_nothing_else(tmp_path: Path, name: str) -> None:
    def search() -> Iterator[tuple[str, list[tuple[str, float]]]]:
        yield "q1", [("d1", 1.0)]
        assert [path.name for path in tmp_path.glob("[!.]*")] == [name], "no half-written file is in sight"
        raise KeyboardInterrupt

    path = tmp_path / name
    write_run(path, [("old", [("d", 1.0)])])
    with pytest.raises(KeyboardInterrupt):
        write_run(path, search())
    assert list(tmp_path.iterdir()) == [path]
    assert read_run(path) == {"old": [("d", 1.0)]}
    write_run(path, [("new", [("d", 2.0)])])
    assert read_run(path) == {"new": [("d", 2.0)]}


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ([("q 1", [("d", 1.0)])], "query id 'q 1' is empty or has white space"),
        ([("q", [("", 1.0)])], "passage id '' is empty or has white space"),
        ([("q", [("d\n", 1.0)])], r"passage id 'd\\n' is empty or has white space"),
        ([("q", [("d", 1.0)]), ("q", [("e", 1.0)])], "query 'q' comes twice"),
        ([("q", [("d", 1.0), ("d", 0.5)])], "query 'q': passage 'd' comes twice"),
        ([("q", [("d", 1.0), ("e", 1.5)])], "query 'q': score 1.5 at rank 2 is above the one before it"),
        ([("q", [("d", math.nan)])], "query 'q': score nan at rank 1 is not finite"),
        ([("q", [("d", math.inf)])], "query 'q': score inf at rank 1 is not finite"),
    ],
)
def test_what_a_run_cannot_hold_is_refused(
    tmp_path: Path, run: list[tuple[str, list[tuple[str, float]]]], message: str
) -> None:
    with pytest.raises(InputError, match=f"out: {message}"):
        write_run(tmp_path / "out", run)
    assert not list(tmp_path.iterdir())


def test_a_tag_is_one_word(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="tag 'two words' is empty or has white space"):
        write_run(tmp_path / "out", [], tag="two words")


@pytest.mark.parametrize("target", [".", "missing/out"])
def test_a_run_needs_an_existing_folder_and_a_name(tmp_path: Path, target: str) -> None:
    with pytest.raises(InputError, match="cannot be written; name a file in a folder that exists"):
        write_run(tmp_path / target, [])
