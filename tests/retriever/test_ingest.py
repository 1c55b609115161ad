import gzip
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from contextlib import suppress
from pathlib import Path
from threading import Event

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retriever.data import BLOCK_ROWS, Corpus, QuerySet
from retriever.errors import InputError
from retriever.ingest import ingest_corpus, load_query_set
from retriever.store import Store
from tests.stand_ins import tiny_store, write_json_lines, write_tiny_data

Judgements = Mapping[tuple[str, str], int]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_tiny_data(tmp_path / "data", passages=20, queries=16)


def new_store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", create=True)


def write_qrels(data: Path, split: str, judgements: Judgements) -> None:
    lines = [f"{query}\t{passage}\t{grade}\n" for (query, passage), grade in judgements.items()]
    (data / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))


def append(path: Path, line: str) -> int:
    """Append a line to a file and return its number."""
    path.write_text(path.read_text() + line + "\n")
    return path.read_text().count("\n")


def load(data: Path, corpus: Corpus, split: str) -> QuerySet:
    return load_query_set(data, split, corpus, warn=pytest.fail)


def test_a_corpus_is_ingested_in_the_order_of_the_file(tmp_path: Path, data: Path) -> None:
    store, corpus = tiny_store(tmp_path / "store", data)
    assert corpus.ids(range(20)) == [f"p{row}" for row in range(20)]
    artifact = store.corpora.at(corpus.number)
    artifact.verify()
    assert artifact.facts["rows"] == 20 and artifact.parents == {}


def test_the_same_file_is_ingested_once(tmp_path: Path, data: Path) -> None:
    store = new_store(tmp_path)
    first = ingest_corpus(store, data)
    assert ingest_corpus(Store(store.root), data).number == first.number
    append(data / "corpus.jsonl", '{"_id": "new", "text": "x"}')
    second = ingest_corpus(store, data)
    assert second.number == first.number + 1 and second.facts["rows"] == 21
    assert second.sha256("passages.arrow") != first.sha256("passages.arrow")


def test_who_comes_while_another_ingests_takes_what_that_publishes(tmp_path: Path, data: Path) -> None:
    """As `hone train --refresher elsewhere` and `hone refresh` do that are started together on a fresh store."""
    store, ingesting, go_on = new_store(tmp_path), Event(), Event()

    def slowly(corpus: Corpus) -> None:
        ingesting.set()
        assert go_on.wait(20)

    seen: list[int] = []
    with ThreadPoolExecutor() as pool:
        first = pool.submit(ingest_corpus, store, data, slowly)
        assert ingesting.wait(20)
        second = pool.submit(ingest_corpus, Store(store.root), data, lambda corpus: seen.append(len(corpus)))
        with pytest.raises(NotYet):
            second.result(0.2)
        go_on.set()
        assert first.result(20).number == second.result(20).number == 0
    assert store.corpora.numbers() == [0] and seen == [20]


@pytest.mark.parametrize("name", ["passages.arrow", "text_hash.npy", "manifest.json"])
def test_a_damaged_corpus_is_ingested_anew_with_the_same_bytes(tmp_path: Path, data: Path, name: str) -> None:
    store = new_store(tmp_path)
    first = ingest_corpus(store, data)
    (first.path / name).write_bytes((first.path / name).read_bytes()[:-9])
    again = ingest_corpus(store, data)
    assert again.number == first.number + 1
    assert again.sha256("passages.arrow") == first.sha256("passages.arrow")
    assert Corpus(again).text(19)


def test_gzipped_files_give_the_same_corpus_and_queries(tmp_path: Path, data: Path) -> None:
    store, corpus = tiny_store(tmp_path / "store", data)
    plain = load(data, corpus, "dev")
    for path in (data / "corpus.jsonl", data / "queries.jsonl", data / "qrels" / "dev.tsv"):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    zipped = Corpus(ingest_corpus(store, data))
    assert zipped.sha256 == corpus.sha256
    assert load(data, zipped, "dev") == plain


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "malformed JSON"),
        ('{"id": "x", "contents": "y"}', "no field '_id', but id, contents"),
        ('{"text": "x"}', "no field '_id'"),
        ('{"_id": "x", "text": ""}', "empty text"),
        ('{"_id": "p3", "text": "x"}', "duplicate id 'p3', first on line 4"),
    ],
)
def test_a_bad_line_is_named_and_the_store_stays_as_it_was(tmp_path: Path, data: Path, line: str, message: str) -> None:
    store = new_store(tmp_path)
    ingest_corpus(store, data)
    before = sorted(path for path in store.root.rglob("*") if "locks" not in path.parts)
    number = append(data / "corpus.jsonl", line)
    with pytest.raises(InputError, match=rf"corpus\.jsonl:{number}: .*{message}"):
        ingest_corpus(store, data)
    assert sorted(path for path in store.root.rglob("*") if "locks" not in path.parts) == before


def test_passages_without_a_text_are_left_out_where_that_is_wished(tmp_path: Path, data: Path) -> None:
    for number in range(6):
        append(data / "corpus.jsonl", f'{{"_id": "void{number}", "title": " ", "text": ""}}')
    append(data / "corpus.jsonl", '{"_id": "titled", "title": "baka", "text": ""}')
    store = new_store(tmp_path)
    said: list[str] = []
    corpus = Corpus(ingest_corpus(store, data, skipping=said.append))
    assert corpus.ids(range(len(corpus))) == [*(f"p{row}" for row in range(20)), "titled"]
    assert corpus.row_of("void0") is None
    shown = ", ".join(f"void{number} (line {number + 21})" for number in range(5))
    assert said == [f"{data / 'corpus.jsonl'}: 6 passages have an empty text: {shown}, …; skipped"]
    assert ingest_corpus(store, data, skipping=said.append).number == corpus.number
    assert said[1:] == said[:1], "who reads the same file later is told, too"
    with pytest.raises(InputError, match=r"6 passages have an empty text.*pass --skip-missing"):
        ingest_corpus(store, data)
    append(data / "corpus.jsonl", '{"_id": "p3", "text": "x"}')
    with pytest.raises(InputError, match="duplicate id 'p3', first on line 4"):
        ingest_corpus(store, data, skipping=said.append)


def test_duplicates_far_apart_are_found(tmp_path: Path) -> None:
    ids = [*range(BLOCK_ROWS + 5), 17]
    write_json_lines(tmp_path / "corpus.jsonl", [{"_id": str(i), "text": "x"} for i in ids])
    with pytest.raises(InputError, match=rf"corpus\.jsonl:{BLOCK_ROWS + 6}: duplicate id '17', first on line 18"):
        ingest_corpus(new_store(tmp_path), tmp_path)


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_corpus_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "corpus.jsonl").write_text(text)
    store = new_store(tmp_path)
    with pytest.raises(InputError, match="no passages"):
        ingest_corpus(store, tmp_path)
    assert store.corpora.numbers() == []


def test_a_folder_without_a_corpus_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"corpus\.jsonl: no such file"):
        ingest_corpus(new_store(tmp_path), tmp_path)


def test_a_query_set_holds_the_judged_queries_in_the_order_of_the_file(tmp_path: Path, data: Path) -> None:
    _, corpus = tiny_store(tmp_path / "store", data)
    write_qrels(data, "dev", {("q5", "p1"): 1, ("q2", "p9"): 2, ("q5", "p0"): 0, ("q2", "p3"): 1, ("q9", "p0"): 0})
    queries = load(data, corpus, "dev")
    assert (queries.split, list(queries.ids)) == ("dev", ["q2", "q5", "q9"])
    assert list(queries.judgements) == [{9: 2, 3: 1}, {1: 1, 0: 0}, {0: 0}]
    assert queries.positives(0).tolist() == [3, 9] and queries.positives(2).tolist() == []


def test_trec_judgements_are_read_as_well(tmp_path: Path, data: Path) -> None:
    _, corpus = tiny_store(tmp_path / "store", data)
    (data / "qrels" / "trec.tsv").write_text("q1 0 p4 2\nq0 0 p3 1\n")
    queries = load(data, corpus, "trec")
    assert list(queries.ids) == ["q0", "q1"] and list(queries.judgements) == [{3: 1}, {4: 2}]


@pytest.mark.parametrize(("pair", "what"), [(("q1", "nowhere"), "passage"), (("nobody", "p1"), "query")])
def test_a_judgement_of_something_unknown_is_listed_and_counted(
    tmp_path: Path, data: Path, pair: tuple[str, str], what: str
) -> None:
    _, corpus = tiny_store(tmp_path / "store", data)
    write_qrels(data, "dev", {("q1", "p1"): 1, pair: 1})
    name = pair[0] if what == "query" else pair[1]
    with pytest.raises(
        InputError, match=rf"qrels/dev\.tsv: 1 judgement names an unknown {what}: {name}.*--skip-missing"
    ):
        load(data, corpus, "dev")
    warnings: list[str] = []
    queries = load_query_set(data, "dev", corpus, skip_missing=True, warn=warnings.append)
    assert list(queries.ids) == ["q1"] and list(queries.judgements) == [{1: 1}]
    assert len(warnings) == 1 and f"1 judgement names an unknown {what}: {name}" in warnings[0]
    assert warnings[0].endswith("skipped")


def test_many_unknown_are_counted_in_full_and_shown_in_part(tmp_path: Path, data: Path) -> None:
    _, corpus = tiny_store(tmp_path / "store", data)
    write_qrels(data, "dev", {("q1", f"x{number}"): 1 for number in range(30)})
    with pytest.raises(InputError, match=r"30 judgements .* x0 \(line 2\), .*, …;"):
        load(data, corpus, "dev")


@pytest.mark.parametrize("judgements", [{}, {("q1", "p1"): 0}, {("q1", "p1"): -1}])
def test_a_split_without_a_relevant_pair_is_an_error(tmp_path: Path, data: Path, judgements: Judgements) -> None:
    _, corpus = tiny_store(tmp_path / "store", data)
    write_qrels(data, "dev", judgements)
    with pytest.raises(InputError, match="'dev' has no relevant"):
        load(data, corpus, "dev")


def test_of_judgements_that_contradict_each_other_the_last_counts_and_they_are_told(tmp_path: Path, data: Path) -> None:
    _, corpus = tiny_store(tmp_path / "store", data)
    write_qrels(data, "dev", {("q1", "p1"): 1, ("q1", "p2"): 1, ("q2", "p3"): 1})
    append(data / "qrels/dev.tsv", "q1\tp2\t1")
    number = append(data / "qrels/dev.tsv", "q1\tp1\t0")
    said: list[str] = []
    found = load_query_set(data, "dev", corpus, warn=said.append)
    assert found.judgements[found.ids.index("q1")] == {1: 0, 2: 1}
    assert said == [
        f"{data}/qrels/dev.tsv: 1 judgement contradicts an earlier one of the same pair: q1 p1 (line {number}); "
        "the last of a pair counts"
    ]


def test_a_query_id_that_comes_twice_is_named(tmp_path: Path, data: Path) -> None:
    _, corpus = tiny_store(tmp_path / "store", data)
    number = append(data / "queries.jsonl", '{"_id": "q0", "text": "again"}')
    with pytest.raises(InputError, match=rf"queries\.jsonl:{number}: duplicate id 'q0'"):
        load(data, corpus, "train")


def test_a_split_that_is_not_there_is_named(tmp_path: Path, data: Path) -> None:
    _, corpus = tiny_store(tmp_path / "store", data)
    with pytest.raises(InputError, match=r"qrels/validation\.tsv: no such file"):
        load(data, corpus, "validation")


@pytest.mark.parametrize(
    "split", ["train:0", "train:1", "train:-1", "train:2", "train:nan", "train:tenth", "train:0.1:0.1"]
)
def test_a_fraction_that_is_none_is_named(tmp_path: Path, data: Path, split: str) -> None:
    _, corpus = tiny_store(tmp_path / "store", data)
    with pytest.raises(InputError, match=r"write a name, or name:0\.1 for a carved tenth"):
        load(data, corpus, split)


def test_a_carved_tenth_is_about_a_tenth_and_the_same_each_time(tmp_path: Path) -> None:
    data = write_tiny_data(tmp_path / "data", passages=1000, queries=1000)
    _, corpus = tiny_store(tmp_path / "store", data)
    write_qrels(data, "train", {(f"q{i}", f"p{i}"): 1 for i in range(1000)})
    carved, rest = load(data, corpus, "train:0.1"), load(data, corpus, "train:-0.1")
    assert 60 < len(carved) < 140 and len(carved) + len(rest) == 1000
    assert load(data, corpus, "train:0.1") == carved
    assert set(carved.ids) < set(load(data, corpus, "train:0.3").ids)


def test_a_split_without_the_queries_that_are_carved_off_another(tmp_path: Path) -> None:
    """ "without_a" has half of the queries of train: those of the carved half are left out of it, and no other."""
    data = write_tiny_data(tmp_path / "data", passages=100, queries=100)
    _, corpus = tiny_store(tmp_path / "store", data)
    write_qrels(data, "train", {(f"q{i}", f"p{i}"): 1 for i in range(100)})
    write_qrels(data, "without_a", {(f"q{i}", f"p{i}"): 1 for i in range(50)})
    for dev in ("train:0.3", "train:-0.3"):
        carved, learned = load(data, corpus, dev), load(data, corpus, f"without_a:-{dev}")
        assert {*learned.ids} == {f"q{i}" for i in range(50)} - {*carved.ids} != {f"q{i}" for i in range(50)}
    assert load(data, corpus, "train:0.9:-train:-0.9").ids == load(data, corpus, "train:0.9").ids
    with pytest.raises(InputError, match=r"qrels/nowhere\.tsv: no such file"):
        load(data, corpus, "without_a:-nowhere:0.3")


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Corpus]:
    folder = tmp_path_factory.mktemp("ingested")
    data = write_tiny_data(folder / "data", passages=20, queries=16)
    return data, tiny_store(folder / "store", data)[1]


@settings(max_examples=60, deadline=None)
@given(
    judgements=st.dictionaries(
        st.tuples(st.integers(0, 15).map("q{}".format), st.integers(0, 19).map("p{}".format)),
        st.sampled_from([1, 2, 1, 0, -1]),
        min_size=1,
        max_size=25,
    ),
    fraction=st.sampled_from([0.1, 0.3, 0.5, 0.9]),
)
def test_two_carved_parts_partition_a_split_and_share_no_positive(
    ingested: tuple[Path, Corpus], judgements: Judgements, fraction: float
) -> None:
    data, corpus = ingested
    write_qrels(data, "train", judgements)
    parts: list[QuerySet] = []
    for split in (f"train:{fraction}", f"train:-{fraction}"):
        with suppress(InputError):  # nobody with a positive fell on this side
            parts.append(load(data, corpus, split))
    if max(judgements.values()) <= 0:
        assert not parts
        return
    assert parts
    whole = load(data, corpus, "train")
    found = {name: dict(judged) for part in parts for name, judged in zip(part.ids, part.judgements, strict=True)}
    assert sum(len(part) for part in parts) == len(found)
    if len(parts) == 2:
        assert found == dict(zip(whole.ids, map(dict, whole.judgements), strict=True))
    positives = [{row for i in range(len(part)) for row in part.positives(i).tolist()} for part in parts]
    assert sum(map(len, positives)) == len(set().union(*positives))


MEASURED = """
import random, sys
from pathlib import Path
from retriever.data import Corpus
from retriever.ingest import ingest_corpus
from retriever.store import Store

root = Path(sys.argv[1])
corpus = Corpus(ingest_corpus(Store(root / "store", create=True), root))
rows = random.Random(3).sample(range(len(corpus)), len(corpus))
assert len(rows) == 100_000
for row in rows:
    assert corpus.text(row).startswith(f"T{row} passage {row} ")
for row in rows[:1000]:
    assert corpus.row_of(f"id-{row}") == row
status = Path("/proc/self/status").read_text()
print(int(status.split("VmHWM:")[1].split()[0]) * 1024)
"""


@pytest.mark.slow
def test_100_000_passages_are_ingested_and_read_in_any_order_within_1_gib(tmp_path: Path) -> None:
    """The peak is that of a process of its own, since it began: VmHWM, for ru_maxrss counts the parent's as well."""
    with (tmp_path / "corpus.jsonl").open("w") as file:
        for row in range(100_000):
            words = f"passage {row} " + "of some thirty short words that a reader has to take in " * 3
            file.write(f'{{"_id": "id-{row}", "title": "T{row}", "text": "{words}"}}\n')
    run = subprocess.run(
        [sys.executable, "-c", MEASURED, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 1 << 30
