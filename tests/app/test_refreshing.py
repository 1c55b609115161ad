from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest
import torch

from app.composition import Run, make_trainer
from app.opening import encoder_opener
from app.refresher_process import RefresherProcess, refresher_command
from app.refreshing import InlineRefresher, RefreshSteps, follow_checkpoints, follow_runs, retention
from miner.generations import BASELINE
from retriever.artifacts import Artifact
from retriever.checkpoint import publish_model
from retriever.durable import sha256_file
from retriever.encoder import DualEncoder, create_encoder
from retriever.errors import InputError
from retriever.negatives import Verdict, open_negative_set
from retriever.protocols import Side
from retriever.store import Store
from tests.app.command_line import opened, write_run
from tests.app.served import wait_for


class Heard:
    """A report that keeps what it hears."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, event: str, **fields: Any) -> None:
        self.events.append((event, fields))

    def of(self, event: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.events if name == event]


@pytest.fixture
def run(tiny: Path, tmp_path: Path) -> Run:
    return opened(tiny / "run.toml", tmp_path / "store")


def publish(store: Store, run: Run, step: int, **facts: bool) -> Artifact:
    """Publish the model of ``run`` as the checkpoint of ``step``."""
    model = create_encoder(run.config.model)
    if step == 0 and not facts:
        return publish_model(store, model, {"corpus": run.corpus.number})
    with store.checkpoints.stage({"corpus": run.corpus.number}) as draft:
        model.save(draft.path / "model")
        draft.facts.update(step=step, weights_sha256=model.weights_sha256(), **facts)
    return store.checkpoints.at(draft.number)


def test_a_later_checkpoint_reads_the_kept_tokens_and_says_the_same_of_cuts(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = ("dropout = 0.0", "dropout = 0.0\npassage_max_length = 8")
    run = opened(write_run(tmp_path / "run.toml", tiny / "data", tiny / "model", short), tmp_path / "store")
    tokenized: list[str] = []
    tokenize = DualEncoder.tokenize

    def watched(model: DualEncoder, side: Side, texts: Sequence[str]) -> tuple[list[list[int]], list[bool]]:
        tokenized.extend([side] * len(texts))
        return tokenize(model, side, texts)

    monkeypatch.setattr(DualEncoder, "tokenize", watched)
    said = []
    for step in (0, 3):
        heard = Heard()
        model = create_encoder(run.config.model)
        with torch.no_grad():
            next(model.parameters()).mul_(1 + step)
        with run.store.checkpoints.stage({"corpus": run.corpus.number}) as draft:
            model.save(draft.path / "model")
            draft.facts.update(step=step, weights_sha256=model.weights_sha256())
        steps = RefreshSteps(run, heard)
        generation = steps.build(run.store.checkpoints.at(draft.number))
        steps.mine(generation)
        said.append([one["message"] for one in heard.of("warning") if "longer than" in one["message"]])
        assert (run.store.embeddings / generation.facts["passage_tokens_fingerprint"]).is_dir()
    assert said[0] == said[1] and any("60 passages" in one for one in said[0])
    assert tokenized.count("passage") == 60, "those of the second were read from the store"
    assert tokenized.count("query") == 20 + 10 + 10, "and so were the mined queries, but not dev's"


def test_a_generation_then_its_negatives(run: Run) -> None:
    heard = Heard()
    steps = RefreshSteps(run, heard)
    checkpoint = publish(run.store, run, 0)
    generation = steps.build(checkpoint)
    assert generation.parents == {"checkpoint": 0, "corpus": 0}
    assert generation.facts["dev_queries"] == 10 and 0 < generation.facts["dev"]["nDCG@10"] < 1
    negatives = steps.mine(generation)
    assert negatives.parents["generation"] == generation.number and negatives.facts["queries"] == 20
    assert negatives.facts["dev"] == generation.facts["dev"], "the trainer counts its patience by these"
    assert heard.of("build_started") == [{"checkpoint": 0, "step": 0}]
    assert {event["phase"] for event in heard.of("progress")} >= {"encode", "mine"}


def test_the_baseline_is_what_the_model_could_do_before_training(run: Run) -> None:
    steps = RefreshSteps(run, Heard())
    for step in (0, 3):
        steps.mine(steps.build(publish(run.store, run, step, refresh=True)))
    assert (run.store.generations.pointed(BASELINE), run.store.generations.pointed("CURRENT")) == (0, 1)


def test_the_inline_refresher_is_done_when_it_returns(run: Run) -> None:
    heard = Heard()
    refresher = InlineRefresher(run, heard)
    for step in (0, 3):
        checkpoint = publish(run.store, run, step, refresh=True)
        refresher.marked(checkpoint)
        mined = run.store.negatives.get()
        assert mined is not None and mined.parents["checkpoint"] == checkpoint.number
    refresher.marked(publish(run.store, run, 6, refresh=True, final=True))
    assert [event["step"] for event in heard.of("negatives_published")] == [0, 3, 6]
    assert refresher.trouble() is None


def test_a_set_that_a_kill_left_unnamed_is_named_and_the_inline_refresher_returns(run: Run) -> None:
    refresher = InlineRefresher(run, Heard())
    for step in (0, 3):
        second = publish(run.store, run, step, refresh=True)
        refresher.marked(second)
    run.store.negatives.point("CURRENT", 0)
    heard = Heard()
    InlineRefresher(run, heard).marked(second)
    assert run.store.negatives.pointed("CURRENT") == 1 and not heard.of("negatives_published")


def test_generations_stay_where_training_reads_their_vectors(run: Run) -> None:
    assert not retention(run).behind_sets
    train = replace(run.config.train, towers="query")
    assert retention(replace(run, config=replace(run.config, train=train))).behind_sets


def test_the_follower_ends_after_the_final_checkpoint(run: Run) -> None:
    heard = Heard()
    publish(run.store, run, 0, refresh=True)
    publish(run.store, run, 4, refresh=True, final=True)
    follow_checkpoints(run, heard, Event())
    assert [event["step"] for event in heard.of("negatives_published")] == [4], "ready: the newest alone"
    assert heard.events[-1][0] == "drained"
    again = Heard()
    follow_checkpoints(run, again, Event())
    assert [event for event, _ in again.events] == ["drained"]


def test_a_follower_of_runs_waits_for_a_training_that_goes_on_and_for_who_else_writes(run: Run) -> None:
    heard, stop, negatives = Heard(), Event(), run.store.negatives
    thread = Thread(target=follow_runs, args=(run, heard, stop))
    thread.start()
    try:
        publish(run.store, run, 0, refresh=True, final=True)
        wait_for(lambda: negatives.pointed("CURRENT") == 0)
        wait_for(lambda: bool(heard.of("drained")))
        other = Store(run.store.root)
        with other.generations.writer(wait=True):
            publish(run.store, run, 5, refresh=True, final=True)
            wait_for(lambda: any("waiting" in event["message"] for event in heard.of("warning")))
        wait_for(lambda: negatives.pointed("CURRENT") == 1)
    finally:
        stop.set()
        thread.join()


def test_a_child_waits_for_a_rebuild_however_long_it_takes(run: Run, tiny: Path) -> None:
    heard = Heard()
    root = run.store.root
    child = RefresherProcess(refresher_command(tiny / "run.toml", root, skip_missing=False), root, heard)
    publish(run.store, run, 0, refresh=True, final=True)
    try:
        with run.store.generations.writer(wait=True):
            child.start()
            wait_for(lambda: "waiting" in (root / "refresher.log").read_text(), 60, 0.05)
        assert child.wait() is None and run.store.negatives.pointed("CURRENT") == 0
    finally:
        child.close()
    assert heard.of("warning") == [], "it was not started again"


def test_what_the_parts_warn_of_is_reported(run: Run) -> None:
    heard = Heard()
    checkpoint = publish(run.store, run, 0)
    steps = RefreshSteps(run, heard)
    steps.build(checkpoint)
    (shard,) = run.store.embeddings.rglob("*.npy")
    shard.write_bytes(b"torn")
    steps.build(publish(run.store, run, 3, refresh=True))
    assert any(str(shard) in event["message"] for event in heard.of("warning")), heard.events


def test_texts_that_are_cut_are_said_once(run: Run) -> None:
    model = replace(run.config.model, query_max_length=3, passage_max_length=4)
    short, heard = replace(run, config=replace(run.config, model=model)), Heard()
    steps = RefreshSteps(short, heard)
    for step in (0, 1):
        steps.mine(steps.build(publish(run.store, short, step)))
    assert [fields["message"] for fields in heard.of("warning")] == [
        "10 queries are longer than query_max_length = 3 tokens; the rest is not read",
        "60 passages are longer than passage_max_length = 4 tokens; the rest is not read",
        "20 queries are longer than query_max_length = 3 tokens; the rest is not read",
    ]


@pytest.fixture
def partly(tiny: Path, tmp_path: Path) -> Run:
    """A run whose refreshes are partial but for each third one."""
    method = ('trigger = "steps:3"', 'trigger = "steps:3"\nmethod = "partial"\nshare = 0.25\nfull_every = 3')
    return opened(write_run(tmp_path / "run.toml", tiny / "data", tiny / "model", method), tmp_path / "store")


def made(run: Run) -> list[tuple[int, int | None]]:
    """Return the step of each generation, and which one it was mapped from."""
    found = [run.store.generations.at(number) for number in run.store.generations.numbers()]
    return [(one.facts["step"], (one.facts.get("partial") or {}).get("parent")) for one in found]


def test_partial_refreshes_stand_between_full_ones_and_the_last_is_full(partly: Run) -> None:
    refresher = InlineRefresher(partly, Heard())
    for step in (0, 3, 6, 9, 12):
        refresher.marked(publish(partly.store, partly, step, refresh=True))
    refresher.marked(publish(partly.store, partly, 15, refresh=True, final=True))
    assert made(partly) == [(0, None), (3, 0), (6, 1), (9, None), (12, 3), (15, None)]
    assert partly.store.generations.pointed("SERVED") == 5
    assert [partly.store.negatives.at(n).parents["generation"] for n in range(6)] == list(range(6))
    facts = partly.store.generations.at(2).facts["partial"]
    assert (facts["turn"], facts["encoded_rows"], facts["mapped_rows"]) == (1, 15, 45)


def test_what_is_torn_is_not_mapped_from(partly: Run) -> None:
    heard = Heard()
    steps = RefreshSteps(partly, heard)
    first = steps.build(publish(partly.store, partly, 0))
    (first.path / "index.faiss").write_bytes(b"torn")
    assert "partial" not in steps.build(publish(partly.store, partly, 3, refresh=True)).facts
    assert any("all passages are encoded" in event["message"] for event in heard.of("warning"))


def test_another_configuration_s_generation_is_not_mapped_from(partly: Run, tiny: Path, tmp_path: Path) -> None:
    RefreshSteps(partly, Heard()).build(publish(partly.store, partly, 0))
    other = opened(
        write_run(
            tmp_path / "other.toml", tiny / "data", tiny / "model", ('trigger = "steps:3"', 'method = "partial"')
        ),
        partly.store.root,
    )
    assert "partial" not in RefreshSteps(other, Heard()).build(publish(other.store, other, 3, refresh=True)).facts


def test_a_later_step_s_generation_is_not_mapped_from(partly: Run) -> None:
    """A trainer that went back to an earlier checkpoint marks steps whose successors were refreshed already."""
    steps = RefreshSteps(partly, Heard())
    for step in (0, 3, 6, 3):
        steps.build(publish(partly.store, partly, step, refresh=True))
    assert made(partly) == [(0, None), (3, 0), (6, 1), (3, 0)]
    same = [partly.store.generations.at(number).sha256("vectors/00000.npy") for number in (1, 3)]
    assert same[0] == same[1]


def rescoring(tiny: Path, tmp_path: Path, *changes: tuple[str, str]) -> Run:
    """Return a run of which each third refresh is full and the others score the pools of the set before anew."""
    method = ('trigger = "steps:3"', 'trigger = "steps:3"\nmethod = "rescore"\nfull_every = 3')
    config = write_run(
        tmp_path / "run.toml", tiny / "data", tiny / "model", method, *(changes or [("depth = 10", "depth = 2")])
    )
    return opened(config, tmp_path / "store")


def publish_moved(run: Run, step: int) -> Artifact:
    """Publish the checkpoint of ``step`` with weights that moved since the step before."""
    model = create_encoder(run.config.model)
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(0.02 * step * torch.randn(weights.shape, generator=generator))
    with run.store.checkpoints.stage({"corpus": run.corpus.number}) as draft:
        model.save(draft.path / "model")
        draft.facts.update(step=step, weights_sha256=model.weights_sha256(), refresh=True)
    return run.store.checkpoints.at(draft.number)


def candidates(artifact: Artifact) -> list[set[int]]:
    return [set(line.tolist()) - {-1} for line in open_negative_set(artifact.path).passages]


def test_rescoring_keeps_each_query_s_candidates_and_gives_them_fresh_scores(tiny: Path, tmp_path: Path) -> None:
    run = rescoring(tiny, tmp_path)
    refresher = InlineRefresher(run, Heard())
    for step in (0, 3, 6, 9):
        refresher.marked(publish_moved(run, step))
    sets = [run.store.negatives.at(number) for number in range(4)]
    generations = [run.store.generations.at(number) for number in range(4)]
    methods = [(one.facts.get("partial") or {}).get("method") for one in generations]
    assert methods == [None, "rescore", "rescore", None]
    assert candidates(sets[0]) == candidates(sets[1]) == candidates(sets[2]) != candidates(sets[3])
    held = set().union(*candidates(sets[0])) | {int(row) for row in open_negative_set(sets[0].path).positives.ravel()}
    assert generations[1].facts["partial"]["encoded_rows"] == len(held) < 60
    assert sets[1].parents == {"checkpoint": 1, "corpus": 0, "generation": 1, "negatives": 0}
    assert sets[1].facts["step"] == 3 and run.store.generations.pointed("SERVED") not in (1, 2)
    fresh = encoder_opener(run.config.index)(generations[1])
    scored = open_negative_set(sets[1].path)
    queries = fresh.encode_queries(run.train.texts)
    for query, (rows, scores) in enumerate(zip(scored.passages, scored.scores, strict=True)):
        expected = fresh.encode_passages(run.corpus.texts(rows)) @ queries[query]
        np.testing.assert_allclose(scores, expected, atol=1e-5)
        assert scores[0] >= scores[1] and (scored.mined_from == 1).all()
    assert (scored.scores != open_negative_set(sets[0].path).scores).any()


def test_pools_of_other_queries_or_candidates_are_not_scored_anew(tiny: Path, tmp_path: Path) -> None:
    run = rescoring(tiny, tmp_path)
    steps = RefreshSteps(run, Heard())
    steps.mine(steps.build(publish_moved(run, 0)))
    rescored = steps.build(publish_moved(run, 3))

    def mine(*changes: tuple[str, str]) -> Artifact:
        changed = write_run(tmp_path / "changed.toml", tiny / "data", tiny / "model", *changes)
        return RefreshSteps(opened(changed, run.store.root), Heard()).mine(rescored)

    shallow = ("depth = 10", "depth = 2")
    for changes, differing in (
        ([], "depth"),
        ([shallow, ("[negatives]\n", '[negatives]\nsources = ["ann", "bm25"]\n')], "sources"),
        ([shallow, ("[data]\n", '[data]\ntrain = "test"\n')], "queries_sha256"),
    ):
        with pytest.raises(InputError, match=f"the pools of negative set 0 alone, and that differs in {differing}"):
            mine(*changes)
    filtered = mine(("depth = 10", "depth = 2\nrange_min = 1"))  # what is refused among them may be another
    assert (open_negative_set(filtered.path).verdicts[:, 0] != Verdict.ELIGIBLE).all()


def test_what_cannot_be_scored_anew_is_encoded_whole_and_said(tiny: Path, tmp_path: Path) -> None:
    run, heard = rescoring(tiny, tmp_path), Heard()
    steps = RefreshSteps(run, heard)
    mined = steps.mine(steps.build(publish(run.store, run, 0)))
    (mined.path / "scores.npy").write_bytes(b"torn")
    assert "partial" not in steps.build(publish(run.store, run, 3, refresh=True)).facts
    assert any("all passages are encoded" in event["message"] for event in heard.of("warning"))


def test_stored_verdicts_reach_every_refresh(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "judged.jsonl").write_text('{"query": "q3", "passage": "p9", "relevant": true}\n')
    run = rescoring(tiny, tmp_path, ("depth = 10", 'depth = 60\nverdicts = "judged.jsonl"'))
    steps = RefreshSteps(run, Heard())
    for step in (0, 3):
        mined = steps.mine(steps.build(publish(run.store, run, step, refresh=True)))
        found = open_negative_set(mined.path)
        assert found.verdicts[3][found.passages[3] == 9].tolist() == [Verdict.JUDGED_RELEVANT]
        assert mined.facts["verdicts_sha256"] == sha256_file(tmp_path / "judged.jsonl")


def test_negatives_come_by_quota_from_words_the_baseline_and_the_newest(tiny: Path, tmp_path: Path) -> None:
    """R²anker over a whole run: the quotas hold in training, sets name their generations, and nothing is in the way."""
    quotas = 'quotas = { bm25 = 1, "generation:BASELINE" = 1, "generation:-1" = 1, ann = 2 }\nfill = "ann"\n'
    sources = 'sources = ["ann", "bm25", "generation:BASELINE", "generation:-1"]\n'
    config = write_run(
        tmp_path / "run.toml",
        tiny / "data",
        tiny / "model",
        ("[negatives]\n", f"[negatives]\n{sources}{quotas}"),
        ("batch_size = 4\n", "batch_size = 4\nnum_negatives = 5\n"),
        ('trigger = "steps:3"', 'trigger = "steps:2"'),
    )
    run, heard = opened(config, tmp_path / "store"), Heard()
    outcome = make_trainer(run, InlineRefresher(run, heard), heard, Event()).run()
    assert outcome.reason == "finished" and not heard.of("warning")[2:], heard.of("warning")
    newest = run.store.negatives.at(run.store.negatives.numbers()[-1])
    number = newest.parents["generation"]
    assert newest.parents["generation:BASELINE"] == 0 and newest.parents["generation:-1"] == number - 1
    told = heard.of("negatives_published")[-1]["by_source"]
    assert told == newest.facts["by_source"] and told["generation:-1"]["quota"] == 1


def test_quotas_that_are_not_what_is_drawn_are_refused(tiny: Path, tmp_path: Path) -> None:
    change = ("[negatives]\n", '[negatives]\nsources = ["ann", "bm25"]\nquotas = { bm25 = 2, ann = 4 }\n')
    config = write_run(tmp_path / "run.toml", tiny / "data", tiny / "model", change)
    with pytest.raises(InputError, match="quotas add up to 6 negatives, but 1 are drawn"):
        opened(config, tmp_path / "store")


def test_a_generation_that_is_not_pinned_stops_the_run_before_it_begins(tiny: Path, tmp_path: Path) -> None:
    change = ("[negatives]\n", '[negatives]\nsources = ["ann", "generation:WARMUP"]\n')
    config = write_run(tmp_path / "run.toml", tiny / "data", tiny / "model", change)
    with pytest.raises(InputError, match="run `hone pin generations N WARMUP`"):
        opened(config, tmp_path / "store")
