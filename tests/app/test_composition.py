import json
import shutil
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch

from app.composition import Run, make_trainer, open_run, planner_opener, with_positives
from app.rankers import own_ranker
from app.refreshing import InlineRefresher
from app.training import run_training
from miner.stored_pool import StoredPool
from retriever.data import QuerySet
from retriever.encoder import ModelConfig, create_encoder, load_encoder
from retriever.errors import InputError
from retriever.examples import Examples
from retriever.joining import join_datasets
from retriever.negatives import open_negative_set
from retriever.store import Store
from tests.app.command_line import contents, never, opened, silent, write_run
from tests.stand_ins import write_tiny_data
from tests.tiny_ranker import write_tiny_ranker


def test_a_run_is_its_configuration_with_store_and_data(tiny: Path, tmp_path: Path) -> None:
    run = opened(tiny / "run.toml", tmp_path / "store")
    assert (len(run.corpus), len(run.train)) == (60, 20)
    assert run.dev is not None and len(run.dev) == 10
    assert run.store.corpora.at(0).manifest["config_sha256"] == run.config.sha256
    assert opened(tiny / "run.toml", tmp_path / "store").corpus.number == 0, "the same corpus is not ingested again"


def test_dev_carved_off_train_shares_nothing_with_it(tiny: Path, tmp_path: Path) -> None:
    config = write_run(tmp_path / "run.toml", tiny / "data", tiny / "model", ("[model]", 'dev = "train:0.3"\n[model]'))
    run = opened(config, tmp_path / "store")
    assert run.dev is not None and 0 < len(run.dev) < len(run.train)
    assert sorted([*run.train.ids, *run.dev.ids]) == sorted(f"q{n}" for n in range(20))


def test_dev_carved_off_another_split_is_not_trained_on(tiny: Path, tmp_path: Path) -> None:
    """As an audit advises: train without a data set, measured by the dev queries of all."""
    data = write_tiny_data(tmp_path / "data")
    lines = (data / "qrels/train.tsv").read_text().splitlines()
    (data / "qrels/without_a.tsv").write_text("\n".join(lines[:16]) + "\n")
    change = ("[model]", 'train = "without_a"\ndev = "train:0.3"\n[model]')
    run = opened(write_run(tmp_path / "run.toml", data, tiny / "model", change), tmp_path / "store")
    assert run.dev is not None and {*run.dev.ids} & {f"q{n}" for n in range(15)}
    assert {*run.train.ids} == {f"q{n}" for n in range(15)} - {*run.dev.ids}


def test_queries_without_a_positive_are_counted_and_not_trained_on() -> None:
    said: list[str] = []
    queries = QuerySet("train", ["a", "b", "c"], ["x", "y", "z"], [{0: 1}, {1: 0}, {2: 2}])
    assert with_positives(queries, said.append).ids == ["a", "c"]
    assert said == ["split train: 1 query has no relevant passage and is not trained on"]
    assert with_positives(queries.subset([0, 2]), never).ids == ["a", "c"]


@pytest.mark.parametrize("depth", [10, 31])
def test_a_corpus_that_does_not_fit_the_run_is_not_published(
    tiny: Path, tmp_path: Path, trained: Path, depth: int
) -> None:
    """Else the newest corpus of the store would be one that nothing in it belongs to."""
    data = write_tiny_data(tmp_path / "data", passages=30, queries=28)
    config = write_run(tmp_path / "run.toml", data, tiny / "model", ("depth = 10", f"depth = {depth}"))
    if depth == 10:
        (data / "qrels/dev.tsv").write_text("query-id\tcorpus-id\tscore\nq1\tp55\t1\n")
    before = contents(trained)
    with pytest.raises(InputError, match="p55" if depth == 10 else r"negatives\.depth = 31, but the corpus has 30"):
        opened(config, trained)
    assert contents(trained) == before


def test_skip_missing_counts_what_it_leaves_out(tiny: Path, tmp_path: Path) -> None:
    data = write_tiny_data(tmp_path / "data")
    with (data / "qrels/train.tsv").open("a") as file:
        file.write("q1\tnix\t1\nnobody\tp1\t1\n")
    config = write_run(tmp_path / "run.toml", data, tiny / "model")
    said: list[str] = []
    run = open_run(config, tmp_path / "store", skip_missing=True, warn=said.append)
    assert len(run.train) == 20
    assert len(said) == 2 and "1 judgement names an unknown passage: nix" in said[0] and "nobody" in said[1]


def trainer_events(run: Run, stop: Event) -> list[str]:
    events: list[str] = []

    def report(event: str, **fields: Any) -> None:
        events.append(event)

    outcome = make_trainer(run, InlineRefresher(run, silent), report, stop).run()
    assert outcome.reason == ("interrupted" if stop.is_set() else "finished")
    return events


def test_the_trainer_of_a_run_draws_from_its_negative_sets(tiny: Path, tmp_path: Path) -> None:
    run = opened(tiny / "run.toml", tmp_path / "store")
    events = trainer_events(run, Event())
    assert events.count("step") == 6 and events.count("adopted") == 2
    stopped = Event()
    stopped.set()
    assert "step" not in trainer_events(opened(tiny / "run.toml", tmp_path / "other"), stopped)


B3 = '[batches]\nname = "b3"\nfirst_rank = 2\nranks = 4\ncommunity = 2\n[negatives]'


def test_batches_of_b3_come_from_the_set_in_use(tiny: Path, tmp_path: Path) -> None:
    config = write_run(tmp_path / "run.toml", tiny / "data", tiny / "model", ("[negatives]", B3))
    run = opened(config, tmp_path / "store")
    trainer_events(run, Event())
    open_planner = planner_opener(run)
    sets = [run.store.negatives.at(number) for number in run.store.negatives.numbers()[:2]]
    plans = [open_planner(one).plan(1) for one in (None, *sets)]
    assert {plan.shape for plan in plans} == {(5, 4)}
    assert len({plan.tobytes() for plan in plans}) == 3
    assert {frozenset(batch) for batch in plans[1].tolist()} == {
        frozenset(b) for b in open_planner(sets[0]).plan(2).tolist()
    }
    np.testing.assert_array_equal(plans[0], open_planner(None).plan(1))


def test_no_known_positive_is_a_negative_in_a_batch_of_b3(tiny: Path, tmp_path: Path) -> None:
    """B3 puts near queries together, so that one's positive is often another's: here each has its neighbour's."""
    data = write_tiny_data(tmp_path / "data")
    with (data / "qrels/train.tsv").open("a") as file:
        file.writelines(f"q{query}\tp{(query + 1) % 20}\t1\n" for query in range(20))
    run = opened(write_run(tmp_path / "run.toml", data, tiny / "model", ("[negatives]", B3)), tmp_path / "store")
    trainer_events(run, Event())
    mined = run.store.negatives.at(0)
    source = StoredPool(open_negative_set(mined.path), 0, run.config.negatives.sampler, 2, 1, 5)
    examples, met = Examples(run.corpus, run.train, in_batch=True, seed=1), 0
    for batch in planner_opener(run)(mined).plan(0):
        made = examples.batch(batch, 0, source.draw(batch, 0))
        for query, row in enumerate(batch.tolist()):
            known = np.isin(made.passage_rows, run.train.positives(row))
            met += int(known.sum()) - 1
            negatives = made.allowed[query].copy()
            negatives[made.positive[query]] = False
            assert negatives.any() and not (negatives & known).any()
    assert met > 0, "no batch had a known positive to be kept out"


def test_batches_of_another_run_are_refused(tiny: Path, tmp_path: Path) -> None:
    run = opened(
        write_run(tmp_path / "run.toml", tiny / "data", tiny / "model", ("[negatives]", B3)), tmp_path / "store"
    )
    trainer_events(opened(tiny / "run.toml", tmp_path / "other"), Event())
    foreign = Store(tmp_path / "other").negatives.at(0)
    with pytest.raises(InputError, match=r"holds no batches of 4 for 20 queries, .* begin anew with --new"):
        planner_opener(run)(foreign)


def test_a_frozen_guide_of_an_int8_index_needs_no_calibration(tiny: Path, tmp_path: Path) -> None:
    changes = (
        ("[negatives]", '[loss]\nguide = "start"\nguide_max = 0.9\n[negatives]'),
        ('[index]\nprecision = "fp32"', '[index]\nprecision = "int8"'),
    )
    run = opened(write_run(tmp_path / "run.toml", tiny / "data", tiny / "model", *changes), tmp_path / "store")
    assert make_trainer(run, InlineRefresher(run, silent), silent, Event()) is not None


@pytest.mark.parametrize("loss", ['name = "ccl"', "debias = 0.1"])
def test_a_loss_that_needs_vectors_of_length_1_asks_the_model_for_them(tiny: Path, tmp_path: Path, loss: str) -> None:
    bare = shutil.copytree(tiny / "model", tmp_path / "bare")
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    (bare / "modules.json").write_text(json.dumps(modules))
    run = opened(
        write_run(tmp_path / "run.toml", tiny / "data", bare, ("[negatives]", f"[loss]\n{loss}\n[negatives]")),
        tmp_path / "store",
    )
    with pytest.raises(InputError, match=r"needs vectors of length 1.*write \[model\] normalize = true"):
        make_trainer(run, InlineRefresher(run, silent), silent, Event())


def test_the_clusters_of_ngame_need_no_set(tiny: Path, tmp_path: Path) -> None:
    change = ("[negatives]", '[batches]\nname = "ngame"\n[negatives]')
    run = opened(write_run(tmp_path / "run.toml", tiny / "data", tiny / "model", change), tmp_path / "store")
    vectors = np.random.default_rng(1).standard_normal((20, 8)).astype(np.float32)
    plan = planner_opener(run)(None).plan(2, vectors)
    assert plan.shape == (5, 4) and plan.tolist() != planner_opener(run)(None).plan(2).tolist()
    assert trainer_events(run, Event()).count("step") == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([("[negatives]", '[batches]\nname = "b3"\n[negatives]')], "community = 32: does not divide"),
        ([("[negatives]", B3.replace("first_rank = 2", "first_rank = 30"))], "only 20 training queries have ranks"),
        (
            [("[negatives]", B3.replace("[negatives]", "[loss]\nin_batch = false\n[negatives]"))],
            "in_batch = false has none",
        ),
        ([("depth = 10", 'depth = 10\nverdicts = "none.jsonl"')], "none.jsonl cannot be read"),
    ],
)
def test_what_a_run_cannot_have_is_refused_at_its_start(
    tiny: Path, tmp_path: Path, changes: list[tuple[str, str]], message: str
) -> None:
    config = write_run(tmp_path / "run.toml", tiny / "data", tiny / "model", *changes)
    with pytest.raises(InputError, match=message):
        opened(config, tmp_path / "store")
    assert not (tmp_path / "store" / "corpora" / "000000").exists()


@pytest.mark.parametrize(
    "changes",
    [
        [("depth = 10", 'depth = 10\nsources = ["ann", "lookahead", "momentum", "bm25"]')],
        [("depth = 10", 'depth = 10\nadaptive = 1.0\niqr = 1.5\nsampler = { name = "simans", b = 1.0 }')],
        [("depth = 10", 'depth = 10\nsampler = { name = "log_rank" }'), ('"steps:3"', '"steps:3"\nmethod = "rescore"')],
        [("[negatives]", B3), ("depth = 10", 'depth = 10\nsources = ["momentum", "bm25"]')],
        [("depth = 10", "depth = 10\nper_query = { first = 1 }")],
    ],
    ids=["sources", "filters and simans", "log_rank and rescore", "b3 and bm25", "per query"],
)
def test_each_choice_of_negatives_trains_to_the_end(tiny: Path, tmp_path: Path, changes: list[tuple[str, str]]) -> None:
    run = opened(write_run(tmp_path / "run.toml", tiny / "data", tiny / "model", *changes), tmp_path / "store")
    events = trainer_events(run, Event())
    assert events.count("step") == 6 and events.count("adopted") == 2
    mined = [run.store.negatives.at(number) for number in run.store.negatives.numbers()]
    assert [one.facts["step"] for one in mined] == [0, 3, 6]
    assert all(one.facts["dropped"] < 20 for one in mined)


ADORE = [
    ("[negatives]", "[negatives]\nlive = true"),
    ("[train]", '[train]\nnum_negatives = 4\ntowers = "query"'),
    ("dropout = 0.0", "dropout = 0.0\ntied = false"),
    ("[refresh]", '[loss]\nname = "lambdarank"\nin_batch = false\n[refresh]'),
    ('"steps:3"', '"once"'),
]


def test_adore_moves_the_query_tower_alone_and_encodes_no_passage_again(tiny: Path, tmp_path: Path) -> None:
    run = opened(write_run(tmp_path / "run.toml", tiny / "data", tiny / "model", *ADORE), tmp_path / "store")
    assert trainer_events(run, Event()).count("adopted") == 1
    generations = [run.store.generations.at(number) for number in run.store.generations.numbers()]
    assert [one.facts["step"] for one in generations] == [0, 6]
    first, last = (one.facts for one in generations)
    assert first["passage_fingerprint"] == last["passage_fingerprint"]
    assert first["query_fingerprint"] != last["query_fingerprint"]
    shards = {(one.path / "vectors/00000.npy").stat().st_ino for one in generations}
    assert len(shards) == 1, "the later generation links what the first encoded"


@pytest.mark.parametrize(
    "loss",
    [
        'name = "decoupled"\nhardness = 1.0\nsymmetric = true',
        'name = "mw"',
        'guide = "start"\nguide_max = 0.9\nguide_decay = 0.2',
        'temperature_schedule = "learned"\ndebias = 0.05',
    ],
)
def test_each_kind_of_loss_trains_to_the_end(tiny: Path, tmp_path: Path, loss: str) -> None:
    changes = ("[refresh]", f"[loss]\n{loss}\n[refresh]")
    run = opened(write_run(tmp_path / "run.toml", tiny / "data", tiny / "model", changes), tmp_path / "store")
    assert trainer_events(run, Event()).count("step") == 6


def test_joined_data_sets_are_mixed_batch_by_batch(tiny: Path, tmp_path: Path) -> None:
    join_datasets({"a": tiny / "data", "b": write_tiny_data(tmp_path / "b", queries=16)}, tmp_path / "both")
    changes = ("[refresh]", '[mix]\nby = "temperature:2"\n[refresh]')
    run = opened(write_run(tmp_path / "run.toml", tmp_path / "both", tiny / "model", changes), tmp_path / "store")
    plan = planner_opener(run)(None).plan(0)
    names = [{run.train.ids[row].split("/")[0] for row in batch} for batch in plan]
    assert {len(one) for one in names} == {1} and {"a", "b"} == set.union(*names)
    assert trainer_events(run, Event()).count("step") == 6


def test_data_that_was_not_joined_cannot_be_mixed(tiny: Path, tmp_path: Path) -> None:
    changes = ("[refresh]", '[mix]\nby = "sizes"\n[refresh]')
    run = opened(write_run(tmp_path / "run.toml", tiny / "data", tiny / "model", changes), tmp_path / "store")
    with pytest.raises(InputError, match="hone dataset join"):
        planner_opener(run)(None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([ADORE[0]], "needs train.towers"),
        ([ADORE[1]], "needs model.tied = false"),
        ([("[train]", "[train]\nnum_negatives = 1\ndrawn_negatives = 1")], "must exceed train.num_negatives"),
        ([('"steps:3"', '"staleness:0.3"\nadopt = "scheduled"')], "known before"),
        ([("[negatives]", B3), ("[refresh]", "[mix]\n[refresh]")], "choose one of the two"),
    ],
)
def test_what_cannot_be_joined_is_refused_with_its_reason(
    tiny: Path, tmp_path: Path, changes: list[tuple[str, str]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        opened(write_run(tmp_path / "run.toml", tiny / "data", tiny / "model", *changes), tmp_path / "store")


RANKED = """[ranker]
name = "{ranker}"
batch_size = 5
num_negatives = 3
warmup_steps = 1
learning_rate = 1e-3
[phases]
ranker = 1
retriever = 2
[negatives]"""


def ranked(tiny: Path, folder: Path, *changes: tuple[str, str], ranker: Path | None = None) -> Run:
    """A run with a tiny ranker beside the retriever."""
    name = ranker or write_tiny_ranker(folder / "ranker")
    added = ("[negatives]", RANKED.format(ranker=name))
    return opened(write_run(folder / "run.toml", tiny / "data", tiny / "model", added, *changes), folder / "store")


def test_a_ranker_learns_beside_the_retriever_and_both_are_published(tiny: Path, tmp_path: Path) -> None:
    run = ranked(tiny, tmp_path)
    assert trainer_events(run, Event()).count("ranker") == 1
    checkpoints = [run.store.checkpoints.at(number) for number in run.store.checkpoints.numbers()]
    assert len({one.facts["ranker"]["weights_sha256"] for one in checkpoints}) == len(checkpoints) == 3
    assert len({one.facts["weights_sha256"] for one in checkpoints}) == 3
    assert {"ranker/model.safetensors", "training/ranker_optimizer.safetensors"} <= {*checkpoints[-1].manifest["files"]}
    newest = run.store.generations.get()
    assert newest is not None and newest.parents["checkpoint"] == 2
    assert newest.facts["ranker"] == checkpoints[-1].facts["ranker"]
    opened_one = own_ranker(newest)
    assert opened_one is not None and np.isfinite(opened_one.score(["baka"], ["boka"])).all()


def test_a_ranker_alone_starts_from_the_retriever_s_own_encoder(tiny: Path, tmp_path: Path) -> None:
    once = ("retriever = 2", "retriever = 0"), ('trigger = "steps:3"', 'trigger = "once"')
    run = ranked(tiny, tmp_path, *once, ranker=tiny / "model")
    trainer_events(run, Event())
    first, *_, last = [run.store.checkpoints.at(number) for number in run.store.checkpoints.numbers()]
    assert first.facts["weights_sha256"] == last.facts["weights_sha256"]
    assert first.facts["ranker"]["weights_sha256"] != last.facts["ranker"]["weights_sha256"]


def test_a_teacher_of_the_ranker_is_asked_for_its_log_odds(tiny: Path, tmp_path: Path) -> None:
    teacher = write_tiny_ranker(tmp_path / "teacher", num_hidden_layers=1)
    taught = ("batch_size = 5", f'batch_size = 5\nloss = {{ name = "margin_mse" }}\nteacher = "{teacher}"')
    run = ranked(tiny, tmp_path, taught)
    trainer_events(run, Event())
    weights = [run.store.checkpoints.at(n).facts["ranker"]["weights_sha256"] for n in run.store.checkpoints.numbers()]
    assert len({*weights}) == 3


def test_a_ranker_s_batch_of_more_than_all_queries_is_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\[ranker\] batch_size = 21: write 1 to 20"):
        ranked(tiny, tmp_path, ("batch_size = 5", "batch_size = 21"))
    assert not (tmp_path / "store" / "corpora" / "CURRENT").exists()


def test_a_run_with_adapters_serves_their_merge(tiny: Path, tmp_path: Path) -> None:
    """Generations and fingerprints know of no adapters; the checkpoint keeps them for the next process."""
    change = ("dropout = 0.0", "dropout = 0.0\nlora = { rank = 4, alpha = 8 }")
    config = write_run(tmp_path / "run.toml", tiny / "data", tiny / "model", change)
    run_training(opened(config, tmp_path / "store"), config, "inline")
    store = Store(tmp_path / "store")
    checkpoint, generation = store.checkpoints.get(), store.generations.get()
    assert checkpoint is not None and generation is not None
    assert (checkpoint.path / "training/adapter/adapter_model.safetensors").is_file()
    assert generation.facts["weights_sha256"] == checkpoint.facts["weights_sha256"]
    served, start = load_encoder(generation.path / "model"), create_encoder(ModelConfig(str(tiny / "model")))
    assert served.weights_sha256() == checkpoint.facts["weights_sha256"] != start.weights_sha256()
    assert checkpoint.facts["lora"]["weights_sha256"] == start.weights_sha256()
    words = "embeddings.word_embeddings.weight"
    now, before = (one.passage.transformer.state_dict()[words] for one in (served, start))
    assert torch.equal(now, before), "no adapter is there"
