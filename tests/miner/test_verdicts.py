import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner.verdicts import ACTIONS, StoredVerdicts, corrected, read_verdicts
from retriever.data import Corpus, QuerySet
from retriever.durable import sha256_file
from retriever.errors import InputError
from retriever.negatives import Verdict
from tests.stand_ins import tiny_store, write_json_lines, write_tiny_data

QUERIES = QuerySet("train", ["q0", "q1", "q2"], ["a", "b", "c"], [{0: 1}, {1: 1}, {2: 1}])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    data = write_tiny_data(tmp_path_factory.mktemp("data") / "beir")
    return tiny_store(tmp_path_factory.mktemp("store"), data)[1]


def line(query: str, passage: str, relevant: object) -> dict[str, object]:
    return {"query": query, "passage": passage, "relevant": relevant}


def read(path: Path, corpus: Corpus, *records: dict[str, object]) -> tuple[StoredVerdicts, list[str]]:
    write_json_lines(path, records)
    said: list[str] = []
    return read_verdicts(path, corpus, QUERIES, said.append), said


def test_judged_candidates_are_labelled_and_nothing_else_changes(corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    stored, said = read(
        path, corpus, line("q2", "p7", False), line("q0", "p5", True), {**line("q0", "p6", False), "by": "a judge"}
    )
    assert said == [] and stored.sha256 == sha256_file(path)
    assert [stored.relevant_to(query).tolist() for query in range(3)] == [[5], [], []]
    rows = np.array([[5, 6, 7, -1], [5, 6, 7, 8]], np.int32)
    verdicts = np.full((2, 4), Verdict.FILTERED, np.uint8)
    verdicts[:, 2] = Verdict.ELIGIBLE
    found = stored.respected(verdicts, np.array([0, 2], np.int32), rows)
    assert found.dtype == np.uint8
    assert found.tolist() == [
        [Verdict.JUDGED_RELEVANT, Verdict.JUDGED_IRRELEVANT, Verdict.ELIGIBLE, Verdict.FILTERED],
        [Verdict.FILTERED, Verdict.FILTERED, Verdict.JUDGED_IRRELEVANT, Verdict.FILTERED],
    ]


def test_a_verdict_holds_for_copies_of_the_text_and_makes_no_positives_of_them(tmp_path: Path) -> None:
    data = write_tiny_data(tmp_path / "beir")
    lines = (data / "corpus.jsonl").read_text().splitlines()
    copies = [{**json.loads(lines[row]), "_id": f"copy-of-p{row}"} for row in (5, 6)]
    write_json_lines(data / "corpus.jsonl", [*map(json.loads, lines), *copies])
    corpus = tiny_store(tmp_path / "store", data)[1]
    judged = [{**line("q0", "p5", True), "action": "relabel"}, line("q0", "p6", True), line("q0", "copy-of-p6", False)]
    stored, _ = read(tmp_path / "verdicts.jsonl", corpus, *judged)
    rows = np.array([[5, 60, 6, 61]] * 2, np.int32)
    found = stored.respected(np.zeros((2, 4), np.uint8), np.array([0, 1], np.int32), rows)
    relevant, irrelevant = Verdict.JUDGED_RELEVANT, Verdict.JUDGED_IRRELEVANT
    assert found.tolist() == [[relevant, relevant, relevant, irrelevant], [Verdict.ELIGIBLE] * 4]
    queries, _ = corrected(QUERIES, stored, lambda _: None)
    assert queries.positives(0).tolist() == [0, 5]


@given(
    st.dictionaries(st.tuples(st.integers(0, 2), st.integers(0, 59)), st.booleans(), max_size=20),
    st.lists(st.tuples(st.integers(-1, 59), st.sampled_from(list(Verdict)[:4])), min_size=6, max_size=6),
)
def test_known_positives_duplicates_and_pads_are_beyond_a_judge(
    judged: dict[tuple[int, int], bool], listed: list[tuple[int, Verdict]]
) -> None:
    keys = sorted(query * 60 + row for query, row in judged)
    stored = StoredVerdicts(
        np.array(keys, np.int64), np.array([judged[divmod(key, 60)] for key in keys], np.bool_), 60, ""
    )
    rows = np.array([row for row, _ in listed], np.int32).reshape(2, 3)
    before = np.array([verdict for _, verdict in listed], np.uint8).reshape(2, 3)
    after = stored.respected(before, np.array([1, 2], np.int32), rows)
    for line, query in enumerate((1, 2)):
        for row, old, new in zip(rows[line].tolist(), before[line], after[line], strict=True):
            relevant = judged.get((query, row))
            if row < 0 or relevant is None or old in (Verdict.POSITIVE, Verdict.DUPLICATE):
                assert new == old
            else:
                assert new == (Verdict.JUDGED_RELEVANT if relevant else Verdict.JUDGED_IRRELEVANT)


def test_a_pad_is_not_the_last_passage_of_the_query_before() -> None:
    stored = StoredVerdicts(np.array([59]), np.array([True]), 60, "")  # query 0, passage 59
    verdicts, pad = np.array([[Verdict.FILTERED]], np.uint8), np.array([[-1]], np.int32)
    assert stored.respected(verdicts, np.array([1], np.int32), pad).tolist() == [[Verdict.FILTERED]]


def test_verdicts_on_other_queries_are_counted(corpus: Corpus, tmp_path: Path) -> None:
    stored, said = read(tmp_path / "v.jsonl", corpus, line("q9", "p1", True), line("q1", "p2", True))
    assert len(stored.keys) == 1
    assert said == [f"{tmp_path / 'v.jsonl'}: 1 verdict changes nothing, being on queries that are not trained on"]


def test_the_same_verdict_twice_is_one_and_a_contradiction_is_an_error(corpus: Corpus, tmp_path: Path) -> None:
    stored, _ = read(tmp_path / "v.jsonl", corpus, line("q1", "p2", True), line("q1", "p2", True))
    assert stored.relevant.tolist() == [True]
    with pytest.raises(InputError, match=r"v\.jsonl, line 2: contradicts an earlier line"):
        read(tmp_path / "v.jsonl", corpus, line("q1", "p2", True), line("q1", "p2", False))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[]", 'line 2: write {"query"'),
        (json.dumps({"query": "q1", "passage": "p1"}), 'line 2: write {"query"'),
        (json.dumps(line("q1", "p1", 1)), 'line 2: write {"query"'),
        (json.dumps({"query": 1, "passage": "p1", "relevant": True}), 'line 2: write {"query"'),
        (json.dumps(line("q1", "p99", True)), "line 2: passage 'p99' is not in the corpus"),
        (json.dumps({**line("q1", "p1", True), "action": "keep"}), "line 2: action 'keep'; choose from drop_negative"),
        (json.dumps({**line("q1", "p1", True), "action": ["relabel"]}), "line 2: action ['relabel']; choose from"),
        ('{"query": "\udcff"}', "is not UTF-8"),
    ],
)
def test_a_bad_line_is_named(corpus: Corpus, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "v.jsonl"
    path.write_bytes(b'{"query": "q1", "passage": "p1", "relevant": true}\n' + text.encode(errors="surrogateescape"))
    with pytest.raises(InputError) as error:
        read_verdicts(path, corpus, QUERIES, print)
    assert str(path) in str(error.value) and message in str(error.value)


def test_a_file_that_is_not_there_is_named(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\[negatives\] verdicts: .*none\.jsonl cannot be read"):
        read_verdicts(tmp_path / "none.jsonl", corpus, QUERIES, print)


def test_an_empty_file_judges_nothing(corpus: Corpus, tmp_path: Path) -> None:
    stored, _ = read(tmp_path / "v.jsonl", corpus)
    verdicts = np.array([[Verdict.ELIGIBLE]], np.uint8)
    np.testing.assert_array_equal(
        stored.respected(verdicts, np.array([0], np.int32), np.array([[5]], np.int32)), verdicts
    )


def acting(query: str, passage: str, action: str) -> dict[str, object]:
    return {**line(query, passage, True), "action": action}


def test_each_action_changes_the_training_queries_as_it_says(corpus: Corpus, tmp_path: Path) -> None:
    stored, _ = read(
        tmp_path / "v.jsonl",
        corpus,
        acting("q0", "p9", "drop_example"),
        acting("q1", "p8", "relabel"),
        acting("q2", "p7", "drop_negative"),
        line("q2", "p6", False),
        line("q2", "p5", True),
    )
    said: list[str] = []
    queries, judged = corrected(QUERIES, stored, said.append)
    assert said == ["1 query is left out of training by verdicts"]
    assert (queries.ids, queries.texts) == (["q1", "q2"], ["b", "c"])
    assert [queries.positives(row).tolist() for row in range(2)] == [[1, 8], [2]]
    assert QUERIES.judgements[1] == {1: 1}, "the qrels as they were read stay as they are"
    rows = np.array([[8, 7, 6, 5]] * 2, np.int32)
    verdicts = np.full((2, 4), Verdict.ELIGIBLE, np.uint8)
    assert judged.respected(verdicts, np.array([0, 1], np.int32), rows).tolist() == [
        [Verdict.JUDGED_RELEVANT, *[Verdict.ELIGIBLE] * 3],
        [Verdict.ELIGIBLE, Verdict.JUDGED_RELEVANT, Verdict.JUDGED_IRRELEVANT, Verdict.JUDGED_RELEVANT],
    ]
    assert [judged.relevant_to(row).tolist() for row in range(2)] == [[8], [5, 7]]
    assert judged.sha256 == stored.sha256


@pytest.mark.parametrize("action", ACTIONS)
def test_a_run_may_have_its_own_action_for_all_that_is_relevant(corpus: Corpus, tmp_path: Path, action: str) -> None:
    path = tmp_path / "v.jsonl"
    write_json_lines(path, [acting("q0", "p9", "relabel"), line("q1", "p8", True), line("q1", "p7", False)])
    queries, _ = corrected(QUERIES, read_verdicts(path, corpus, QUERIES, print, action), lambda _: None)
    assert (queries.ids, [queries.positives(row).tolist() for row in range(len(queries))]) == {
        "drop_negative": (["q0", "q1", "q2"], [[0], [1], [2]]),
        "relabel": (["q0", "q1", "q2"], [[0, 9], [1, 8], [2]]),
        "drop_example": (["q2"], [[2]]),
    }[action]


def test_two_actions_on_one_pair_contradict_each_other(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 2: contradicts"):
        read(tmp_path / "v.jsonl", corpus, acting("q1", "p2", "relabel"), acting("q1", "p2", "drop_example"))


def test_qrels_outrank_a_relabelling(corpus: Corpus, tmp_path: Path) -> None:
    judged_zero = QuerySet("train", ["q0"], ["a"], [{0: 1, 4: 0}])
    path, said = tmp_path / "v.jsonl", list[str]()
    write_json_lines(path, [acting("q0", "p4", "relabel"), acting("q0", "p0", "relabel")])
    queries, _ = corrected(judged_zero, read_verdicts(path, corpus, judged_zero, print), said.append)
    assert queries.judgements == [{0: 1, 4: 0}]
    assert said == ["1 verdict changes nothing, as the qrels call irrelevant what would become a positive"]


def test_verdicts_that_leave_no_query_are_an_error(corpus: Corpus, tmp_path: Path) -> None:
    stored, _ = read(tmp_path / "v.jsonl", corpus, *[acting(f"q{row}", "p9", "drop_example") for row in range(3)])
    with pytest.raises(InputError, match="drop every training query"):
        corrected(QUERIES, stored, print)
