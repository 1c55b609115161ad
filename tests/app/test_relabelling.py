import json
import shutil
from pathlib import Path

import pytest

from app.relabel_config import open_judges, read_relabel_config
from app.relabelling import carry_out, open_relabelling
from miner.judgements import Ledger, texts_digest
from miner.relabel import outcomes
from retriever.protocols import PairText
from retriever.store import Store
from tests.app.command_line import Hone, never, silent
from tests.stand_ins import write_json_lines

CAPITALS = dict(
    pair.split(":")
    for pair in (
        "France:Paris Japan:Tokyo Italy:Rome Spain:Madrid Greece:Athens Egypt:Cairo Kenya:Nairobi Peru:Lima Cuba:Havana"
        " Norway:Oslo Sweden:Stockholm Finland:Helsinki Poland:Warsaw Austria:Vienna Hungary:Budapest Ireland:Dublin "
        "Portugal:Lisbon Canada:Ottawa Chile:Santiago Thailand:Bangkok Vietnam:Hanoi Russia:Moscow Turkey:Ankara "
        "Iran:Tehran"
    ).split()
)
FACTS = (
    "{city} is the capital city of {country}.",
    "The government of {country} sits in its capital, {city}.",
    "{city} has a long history and many museums that visitors like.",
    "The farmers of {country} grow wheat, fruit and vegetables.",
    "The national football team of {country} played well last year.",
)


@pytest.fixture
def capitals(tmp_path: Path) -> Path:
    """A folder with data/ and run.toml: 24 questions after capitals, two answers each, every fifth's second hidden."""
    (tmp_path / "data/qrels").mkdir(parents=True)
    names = {"country": "", "city": ""}
    passages, queries, qrels = [], [], ["query-id\tcorpus-id\tscore"]
    for number, (country, city) in enumerate(CAPITALS.items()):
        names = {"country": country, "city": city}
        passages += [{"_id": f"{country}-{n}", "text": fact.format(**names)} for n, fact in enumerate(FACTS)]
        queries.append({"_id": country, "text": f"What is the capital of {country}?"})
        qrels += [f"{country}\t{country}-{n}\t1" for n in range(1 if number % 5 == 0 else 2)]
    write_json_lines(tmp_path / "data/corpus.jsonl", passages)
    write_json_lines(tmp_path / "data/queries.jsonl", queries)
    (tmp_path / "data/qrels/train.tsv").write_text("\n".join(qrels) + "\n")
    shutil.copy(tmp_path / "data/qrels/train.tsv", tmp_path / "data/qrels/dev.tsv")
    (tmp_path / "run.toml").write_text('[data]\npath = "data"\n[model]\nname = "minilm"\n[negatives]\ndepth = 10\n')
    return tmp_path


@pytest.mark.slow
def test_hidden_positives_come_back_by_a_real_model_s_score(hone: Hone, capitals: Path) -> None:
    """5 of 48 answers are hidden (10 %): all come back, and few others come along."""
    judge = '[[judges]]\nkind = "encoder"\nmodel = "minilm"\nthreshold = -0.2\nrelative = true\n'
    (capitals / "relabel.toml").write_text(f'run = "run.toml"\n{judge}')
    assert hone("index", "data", "--model", "minilm", "--store", "store").code == 0
    assert hone("mine", "run.toml", "--store", "store").code == 0
    told = hone("relabel", "relabel.toml", "--store", "store", "--json").json
    lines = [json.loads(line) for line in (capitals / "relabel/verdicts.jsonl").read_text().splitlines()]
    back = {one["query"] for one in lines if one["relevant"] and one["passage"] == f"{one['query']}-1"}
    along = told["relevant"] - len(back)
    print(f"{len(back)} of 5 came back, {along} came along of {told['suspects']}")
    assert back == {name for number, name in enumerate(CAPITALS) if number % 5 == 0}
    assert along <= 12


def test_judgements_on_texts_that_changed_make_no_verdict(
    hone: Hone, tiny: Path, trained: Path, tmp_path: Path
) -> None:
    shutil.copy(tiny / "run.toml", tmp_path / "run.toml")
    write_json_lines(tmp_path / "recorded.jsonl", [{"query": "q0", "passage": "p1", "relevant": True}])
    config = tmp_path / "relabel.toml"
    config.write_text('run = "run.toml"\n[[judges]]\nkind = "file"\npath = "recorded.jsonl"\n')
    read = read_relabel_config(config)
    judges = open_judges(read, config)
    work = open_relabelling(read, config, Store(trained), skip_missing=False, warn=never)
    carry_out(work, tmp_path, judges, silent)
    path = tmp_path / "judgements.jsonl"
    stale = {
        "query": "q0",
        "passage": "p9",
        "relevant": True,
        "judge": "file",
        "texts": "0" * 16,
        "fingerprint": judges[0].fingerprint,
    }
    gone = {**stale, "passage": "gone"}
    texts = work.queries.texts[work.queries.ids.index("q0")], work.corpus.text(8)
    beside = {**stale, "passage": "p8", "texts": texts_digest(PairText("q0", texts[0], "p8", texts[1], ""))}
    beside["positive"] = "0" * 16  # the judge read the positive, which is another now
    path.write_text(path.read_text() + "".join(json.dumps(line) + "\n" for line in (stale, gone, beside)))
    assert {("q0", "p9"), ("q0", "gone"), ("q0", "p8")} <= outcomes(judges, Ledger(path, {})).keys()
    carry_out(work, tmp_path, judges, silent)
    found = [json.loads(line)["passage"] for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert not {"gone", "p9", "p8"} & {*found}
