from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retriever.data import Corpus, QuerySet
from retriever.examples import Batch, Examples
from retriever.ingest import ingest_corpus
from retriever.protocols import Negatives
from retriever.store import Store
from tests.stand_ins import write_json_lines

# Rows 0, 5 and 6 are one text in other case and white space, so are 1 and 7; the texts of queries 2 and 3 are passages.
PASSAGES = [
    "red fox",
    "blue hen",
    "old oak",
    "new elm",
    "wet dog",
    "Red  FOX",
    "red fox ",
    "BLUE hen",
    "dry cat",
    "sly owl",
]
QUERIES = ["a fox", "a hen", "Wet   dog", "dry cat"]
Judged = list[dict[int, int]]


def same_text(one: str, other: str) -> bool:
    return one.lower().split() == other.lower().split()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder: Path = tmp_path_factory.mktemp("data")
    lines = [{"_id": f"p{row}", "title": "", "text": text} for row, text in enumerate(PASSAGES)]
    write_json_lines(folder / "corpus.jsonl", lines)
    return Corpus(ingest_corpus(Store(folder / "store", create=True), folder))


def examples(corpus: Corpus, judged: Judged, *, in_batch: bool = True, seed: int = 0) -> Examples:
    ids = [f"q{row}" for row in range(len(QUERIES))]
    return Examples(corpus, QuerySet("train", ids, QUERIES, judged), in_batch=in_batch, seed=seed)


def drawn(rows: list[list[int]]) -> Negatives:
    """Negatives with ``rows``, of which −1 are empty places."""
    array = np.array(rows, np.int32).reshape(len(rows), -1)
    return Negatives(array, np.zeros(array.shape, np.float32), array >= 0)


def candidates(batch: Batch, query: int) -> set[int]:
    """The corpus rows in the denominator of the query at place ``query`` of the batch, its positive left out."""
    rows = batch.passage_rows[batch.allowed[query]].tolist()
    return {*rows} - {int(batch.passage_rows[batch.positive[query]])}


ROWS = st.integers(0, len(PASSAGES) - 1)
JUDGED = st.lists(
    st.builds(
        lambda relevant, rest: {**dict.fromkeys(rest, 0), **dict.fromkeys(relevant, 1)},
        st.lists(ROWS, min_size=1, max_size=3),
        st.lists(ROWS, max_size=2),
    ),
    min_size=len(QUERIES),
    max_size=len(QUERIES),
)
BATCHES = st.lists(st.integers(0, len(QUERIES) - 1), min_size=1, max_size=4, unique=True)
NEGATIVES = st.lists(st.lists(st.integers(-1, len(PASSAGES) - 1), min_size=2, max_size=2), min_size=4, max_size=4)


@given(JUDGED, BATCHES, NEGATIVES, st.booleans(), st.integers(0, 3))
def test_candidates_are_all_that_may_be_a_negative_and_nothing_else(
    corpus: Corpus, judged: Judged, queries: list[int], negatives: list[list[int]], in_batch: bool, epoch: int
) -> None:
    mine = negatives[: len(queries)]
    batch = examples(corpus, judged, in_batch=in_batch).batch(np.array(queries, np.int32), epoch, drawn(mine))
    taken = batch.passage_rows[batch.positive]
    everything = {*taken.tolist(), *(row for rows in mine for row in rows if row >= 0)}
    assert sorted(batch.passage_rows.tolist()) == sorted(everything)
    for place, query in enumerate(queries):
        positives = [row for row, relevance in judged[query].items() if relevance > 0]
        assert taken[place] in positives
        assert batch.allowed[place, batch.positive[place]]
        known = [QUERIES[query], *(PASSAGES[row] for row in positives)]
        wanted = everything if in_batch else {row for row in mine[place] if row >= 0}
        harmless = {row for row in wanted if not any(same_text(PASSAGES[row], text) for text in known)}
        assert candidates(batch, place) == harmless


def test_other_queries_positives_and_hard_negatives_are_candidates(corpus: Corpus) -> None:
    batch = examples(corpus, [{0: 1}, {1: 1}, {2: 1}, {3: 1}]).batch(np.array([0, 1], np.int32), 0, drawn([[8], [9]]))
    assert candidates(batch, 0) == {8, 1, 9}
    assert candidates(batch, 1) == {9, 0, 8}


def test_without_in_batch_only_a_query_s_own_negatives_are_candidates(corpus: Corpus) -> None:
    set_up = examples(corpus, [{0: 1}, {1: 1}, {2: 1}, {3: 1}], in_batch=False)
    batch = set_up.batch(np.array([0, 1], np.int32), 0, drawn([[8], [9]]))
    assert (candidates(batch, 0), candidates(batch, 1)) == ({8}, {9})


def test_before_the_first_negative_set_the_batch_is_its_positives(corpus: Corpus) -> None:
    batch = examples(corpus, [{0: 1}, {1: 1}, {2: 1}, {3: 1}]).batch(np.array([2, 0], np.int32), 0, None)
    assert batch.query_rows.tolist() == [2, 0]
    assert batch.passage_rows.tolist() == [2, 0]
    assert batch.allowed.all()


def test_a_positive_that_two_queries_share_stands_in_the_batch_once(corpus: Corpus) -> None:
    batch = examples(corpus, [{0: 1}, {0: 1}, {2: 1}, {3: 1}]).batch(np.array([0, 1], np.int32), 0, drawn([[0], [9]]))
    assert sorted(batch.passage_rows.tolist()) == [0, 9]
    assert batch.positive[0] == batch.positive[1]


def test_a_query_whose_text_is_its_positive_keeps_it(corpus: Corpus) -> None:
    batch = examples(corpus, [{0: 1}, {1: 1}, {2: 1}, {8: 1}]).batch(np.array([3], np.int32), 0, drawn([[9]]))
    assert batch.allowed.tolist() == [[True, True]]


def picks(corpus: Corpus, seed: int) -> list[int]:
    set_up = examples(corpus, [{0: 1, 2: 2, 4: 1, 9: 0}, {1: 1}, {2: 1}, {3: 1}], seed=seed)
    batches = [set_up.batch(np.array([0], np.int32), epoch, None) for epoch in range(20)]
    return [int(batch.passage_rows[batch.positive[0]]) for batch in batches]


def test_epochs_take_each_of_several_positives(corpus: Corpus) -> None:
    assert {*picks(corpus, seed=0)} == {0, 2, 4}


def test_which_positive_is_a_function_of_seed_and_epoch(corpus: Corpus) -> None:
    assert picks(corpus, seed=0) == picks(corpus, seed=0) != picks(corpus, seed=1)


def test_a_query_s_positive_does_not_depend_on_its_batch(corpus: Corpus) -> None:
    set_up = examples(corpus, [{0: 1, 2: 1, 4: 1}, {1: 1, 8: 1}, {2: 1}, {3: 1}])
    for epoch in range(5):
        alone = set_up.batch(np.array([0], np.int32), epoch, None)
        together = set_up.batch(np.array([3, 1, 0], np.int32), epoch, drawn([[9], [8], [7]]))
        assert together.passage_rows[together.positive[2]] == alone.passage_rows[alone.positive[0]]


def test_texts_are_those_of_the_rows(corpus: Corpus) -> None:
    set_up = examples(corpus, [{0: 1}, {1: 1}, {2: 1}, {3: 1}])
    batch = set_up.batch(np.array([1, 0], np.int32), 0, drawn([[8], [-1]]))
    queries, passages = set_up.texts(batch)
    assert queries == ["a hen", "a fox"]
    assert dict(zip(batch.passage_rows.tolist(), passages, strict=True)) == {1: "blue hen", 0: "red fox", 8: "dry cat"}
    assert len(set_up) == 4


def test_a_planted_positive_that_is_drawn_as_well_is_no_hard_negative(corpus: Corpus) -> None:
    made = examples(corpus, [{row: 1} for row in range(4)]).batch(
        np.arange(4, dtype=np.int32), 0, drawn([[0], [9], [9], [8]])
    )
    assert not made.hard[0].any() and made.allowed[0, made.positive[0]]
    assert made.hard[1].any()


def test_what_a_judge_called_relevant_is_no_negative_of_the_batch(corpus: Corpus) -> None:
    judged: Judged = [{row: 1} for row in range(4)]
    ids = [f"q{row}" for row in range(4)]
    made = Examples(
        corpus,
        QuerySet("train", ids, QUERIES, judged),
        in_batch=True,
        seed=0,
        judged_relevant=lambda query: np.array([1, 9] if query == 2 else [], np.int32),
    ).batch(np.arange(4, dtype=np.int32), 0, drawn([[9], [9], [9], [8]]))
    assert not candidates(made, 2) & {1, 7, 9}, "nor the duplicate of one, whichever query brought it"
    assert 9 in candidates(made, 0) and 1 in candidates(made, 3)


def test_before_the_first_set_the_batch_is_all_there_is_to_learn_from(corpus: Corpus) -> None:
    made = examples(corpus, [{2: 1}, {3: 1}, {4: 1}, {8: 1}], in_batch=False)
    rows = np.array([0, 1], np.int32)
    assert candidates(made.batch(rows, 0, None), 0) == {3}
    assert candidates(made.batch(rows, 0, drawn([[9], [6]])), 0) == {9}, "from then on its own alone"


def test_what_is_relevant_for_the_same_question_under_another_id_is_no_negative(corpus: Corpus) -> None:
    queries = QuerySet("train", ["a", "b", "c"], ["an owl", "An  OWL", "a hen"], [{9: 1}, {2: 1, 3: 0}, {1: 1}])
    made = Examples(corpus, queries, in_batch=True, seed=0)
    found = made.batch(np.array([0, 1, 2], np.int32), 0, drawn([[2], [4], [3]]))
    assert candidates(found, 0) == {1, 3, 4} and candidates(found, 1) == {1, 3, 4}
    assert candidates(found, 2) == {2, 3, 4, 9}
    assert [queries.known(row).tolist() for row in range(3)] == [[2, 9], [2, 9], [1]]
    assert queries.positives(0).tolist() == [9], "what is learned from stays its own"
