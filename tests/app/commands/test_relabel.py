"""`hone relabel` from negative set to training, with judges behind real HTTP."""

import json
import shutil
from pathlib import Path

import pytest

from retriever.negatives import MAY_BE_DRAWN, open_negative_set
from retriever.store import Store
from tests.app.chat_server import chatting, failing
from tests.app.command_line import Hone, contents, opened, write_run
from tests.stand_ins import write_json_lines


@pytest.fixture
def run(tiny: Path, tmp_path: Path) -> Path:
    """A run.toml beside the store that it was trained in; the newest negative set there is number 2."""
    return Path(shutil.copy(tiny / "run.toml", tmp_path / "run.toml"))


def relabel_toml(folder: Path, judges: str, more: str = "") -> Path:
    path = folder / "relabel.toml"
    path.write_text(f'run = "run.toml"\n{more}\n[suspects]\ntop = 3\n{judges}')
    return path


def recorded(folder: Path, pairs: dict[tuple[str, str], bool]) -> str:
    lines = [{"query": query, "passage": passage, "relevant": said} for (query, passage), said in pairs.items()]
    write_json_lines(folder / "recorded.jsonl", lines)
    return '[[judges]]\nkind = "file"\npath = "recorded.jsonl"\n'


def chat_judge(url: str, name: str, more: str = "") -> str:
    return (
        f'[[judges]]\nkind = "chat"\nurl = "{url}"\nmodel = "{name}"\nprompt = "{name} {{query}} | {{passage}}"\n{more}'
    )


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def top_suspects(run: Path, store: Path, count: int) -> list[tuple[str, str]]:
    """The best so many candidates of each query that may be drawn, as (query id, passage id)."""
    of_run = opened(run, store)
    pool = open_negative_set(Store(store).negatives.at(2).path)
    found = []
    for row, (passages, verdicts) in enumerate(zip(pool.passages, pool.verdicts, strict=True)):
        best = [int(p) for p, v in zip(passages, verdicts, strict=True) if v in MAY_BE_DRAWN and p >= 0][:count]
        found += [(of_run.train.ids[row], of_run.corpus.id(passage)) for passage in best]
    return found


def test_a_cascade_over_http_makes_verdicts_that_training_respects(hone: Hone, run: Path, trained: Path) -> None:
    suspects = top_suspects(run, trained, 3)
    relevant = suspects[:4]
    passages = {f"p{row}": opened(run, trained).corpus.text(row) for row in range(60)}
    queries = dict(zip(opened(run, trained).train.ids, opened(run, trained).train.texts, strict=True))

    def says(pairs: list[tuple[str, str]], prompt: str) -> str:
        return "yes" if any(prompt.endswith(f" {queries[q]} | {passages[p]}") for q, p in pairs) else "no"

    def reply(prompt: str, times: int) -> str:
        return says(suspects[:8] if prompt.startswith("weak") else relevant, prompt)

    with chatting(reply) as chat:
        config = relabel_toml(run.parent, chat_judge(chat.url, "weak") + chat_judge(chat.url, "strong"))
        planned = hone("relabel", config, "--store", trained, "--dry-run", "--json").json
        assert (planned["suspects"], planned["to_ask"], chat.bodies) == (60, 60, [])
        told = hone("relabel", config, "--store", trained, "--write-data", "clean", "--json").json
        strong = [prompt for prompt in chat.prompts if prompt.startswith("strong")]
        assert len(chat.bodies) == 68 and len(strong) == 8, "judge 2 is called for flagged items alone"
        again = hone("relabel", config, "--store", trained, "--json").json
        assert len(chat.bodies) == 68 and again["judges"] == {}
    assert (told["suspects"], told["relevant"], told["irrelevant"], told["undecided"]) == (60, 4, 56, 0)
    assert told["actions"] == {"relabel": 4, "keep_negative": 56}
    assert {name: (of["asked"], of["relevant"]) for name, of in told["judges"].items()} == {
        "weak": (60, 8),
        "strong": (8, 4),
    }
    written = lines(run.parent / "relabel/verdicts.jsonl")
    assert {(one["query"], one["passage"]) for one in written if one["relevant"]} == set(relevant)
    assert all(one["action"] == "relabel" for one in written if one["relevant"])
    assert all("action" not in one and one["negatives"] == 2 for one in written if not one["relevant"])

    qrels = (run.parent / "clean/qrels/train.tsv").read_text().splitlines()
    assert qrels[21:] == [f"{query}\t{passage}\t1" for query, passage in sorted(relevant)] and len(qrels) == 25

    run.write_text(run.read_text().replace("depth = 10", 'depth = 10\nverdicts = "relabel/verdicts.jsonl"'))
    mined = hone("mine", run, "--store", trained, "--json").json
    assert mined["verdicts"]["judged_irrelevant"] > 0
    of_run = opened(run, trained)
    for query, passage in relevant:
        row = of_run.train.ids.index(query)
        assert of_run.corpus.row_of(passage) in of_run.train.positives(row)
    next_round = hone("relabel", config, "--store", trained, "--dry-run", "--json").json
    assert next_round["to_ask"] <= next_round["suspects"] == 60


def test_the_next_rounds_find_the_verdicts_that_a_set_was_mined_with(hone: Hone, run: Path, trained: Path) -> None:
    out, yes = run.parent / "relabel", iter(["yes"] * 4)

    def relevant() -> int:
        told = hone("relabel", config, "--store", trained, "--json").json
        assert sum(bool(one["relevant"]) for one in lines(out / "verdicts.jsonl")) == told["actions"]["relabel"]
        return int(told["actions"]["relabel"])

    with chatting(lambda prompt, times: next(yes, "no")) as chat:
        config = relabel_toml(run.parent, chat_judge(chat.url, "weak"))
        assert relevant() == 4 and [*out.glob("verdicts-*")] == []
        run.write_text(run.read_text().replace("depth = 10", 'depth = 10\nverdicts = "relabel/verdicts.jsonl"'))
        assert hone("mine", run, "--store", trained).code == 0
        yes, first = iter(["yes"]), (out / "verdicts.jsonl").read_bytes()
        assert [relevant(), relevant()] == [5, 5]
        assert [path.read_bytes() for path in out.glob("verdicts-*.jsonl")] == [first]
        audited = hone("audit", run, "--store", trained)
        assert audited.code == 0 and "negatives/000003" not in audited.err, "the set votes"
        exported = hone("export", "negatives", run, "old.jsonl", "--store", trained, "--count", 1)
        assert exported.code == 0 and "mined with earlier verdicts" in exported.err
        judged = {(one["query"], one["passage"]) for one in lines(out / "verdicts.jsonl") if one["relevant"]}
        hone("export", "negatives", run, "old.tevatron", "--store", trained, "--count", 5, "--format", "tevatron")
        written = {
            (one["query_id"], passage["docid"])
            for one in lines(run.parent / "old.tevatron")
            for passage in one["negative_passages"]  # type: ignore[attr-defined]  # a list
        }
        assert len(judged) == 5 and not judged & written, "what was judged since is no negative either"
        assert hone("mine", run, "--store", trained).code == 0
        yes = iter(["yes"])
        assert [relevant(), relevant()] == [6, 6]


def test_bad_answers_make_no_label_and_are_counted(hone: Hone, run: Path, trained: Path) -> None:
    def reply(prompt: str, times: int) -> object:
        choice = sum(map(ord, prompt)) % 3
        return ("yes", "As an assistant I", failing(400))[choice]

    with chatting(reply) as chat:  # type: ignore[arg-type]
        config = relabel_toml(run.parent, chat_judge(chat.url, "odd"))
        told = hone("relabel", config, "--store", trained, "--json").json
    of = told["judges"]["odd"]
    assert of["asked"] == 60 and of["irrelevant"] == 0 and of["failures"].keys() == {"nonsense", "refused"}
    assert told["undecided"] == sum(of["failures"].values()) == 60 - of["relevant"] > 0
    assert len(lines(run.parent / "relabel/verdicts.jsonl")) == of["relevant"]


def test_the_text_says_what_came_of_it(hone: Hone, run: Path, trained: Path) -> None:
    suspects = top_suspects(run, trained, 3)
    config = relabel_toml(run.parent, recorded(run.parent, {pair: n < 5 for n, pair in enumerate(suspects[:50])}))
    said = hone("relabel", config, "--store", trained).out.splitlines()
    assert said[0] == "negative set 2: 60 suspects of 20 queries: 5 relevant, 45 irrelevant, 10 undecided"
    assert said[1] == "verdicts in all: 5 relabel, 45 keep_negative"
    assert said[2] == "file: asked 60: 5 relevant, 45 irrelevant, 10 not recorded"
    verdicts = (run.parent / "relabel/verdicts.jsonl").resolve()
    assert said[-1] == f'Next: write verdicts = "{verdicts}" under [negatives] of the run.toml'
    assert "report.json" in said[-2]


@pytest.mark.parametrize("action", ["drop_example", "drop_negative"])
def test_the_other_actions_change_the_data_as_they_say(hone: Hone, run: Path, trained: Path, action: str) -> None:
    suspects = top_suspects(run, trained, 3)
    judge = recorded(run.parent, {pair: n in (0, 1, 5) for n, pair in enumerate(suspects)})
    config = relabel_toml(run.parent, judge, f'action = "{action}"')
    told = hone("relabel", config, "--store", trained, "--write-data", "clean", "--json").json
    dropped = {suspects[n][0] for n in (0, 1, 5)} if action == "drop_example" else set()
    assert told["data"] == {"out": "clean", "positives_added": 0, "queries_dropped": len(dropped)}
    qrels = (run.parent / "clean/qrels/train.tsv").read_text().splitlines()[1:]
    assert {line.split("\t")[0] for line in qrels} == {f"q{n}" for n in range(20)} - dropped
    run.write_text(run.read_text().replace("depth = 10", 'depth = 10\nverdicts = "relabel/verdicts.jsonl"'))
    mined = hone("mine", run, "--store", trained, "--json").json
    assert mined["queries"] == 20 - len(dropped)
    assert mined["verdicts"]["judged_relevant"] == (0 if dropped else 3)


def test_the_written_data_never_goes_over_anything(hone: Hone, run: Path, tiny: Path, trained: Path) -> None:
    config = relabel_toml(run.parent, recorded(run.parent, {("q0", "p1"): True}))
    before = contents(tiny / "data")
    complaint = hone("relabel", config, "--store", trained, "--write-data", tiny / "data").complaint
    assert "exists already" in complaint and contents(tiny / "data") == before
    assert not (run.parent / "relabel").exists(), "refused before anybody was asked"


def test_a_store_without_negatives(hone: Hone, run: Path, indexed: Path) -> None:
    config = relabel_toml(run.parent, recorded(run.parent, {("q0", "p1"): True}))
    assert "no negatives to judge" in hone("relabel", config, "--store", indexed).complaint


def test_other_data_than_the_set_was_mined_for(hone: Hone, tiny: Path, run: Path, trained: Path) -> None:
    data = Path(shutil.copytree(tiny / "data", run.parent / "other"))
    qrels = data / "qrels/train.tsv"
    qrels.write_text(qrels.read_text() + "q1\tp30\t1\n")
    write_run(run, data, tiny / "model")
    config = relabel_toml(run.parent, recorded(run.parent, {("q0", "p1"): True}))
    assert "mined for another query set" in hone("relabel", config, "--store", trained).complaint
