"""One batch through a ranker: who is in a group, exact gradients whatever the micro-batches, a teacher's scores."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from retriever.data import Corpus
from retriever.examples import Batch, Examples
from retriever.inference import TOKEN_BUDGETS
from retriever.ingest import load_query_set
from retriever.losses.ranking import RANKING_LOSSES, Groups, RankingLossConfig
from retriever.protocols import FloatArray, Negatives
from retriever.ranker import RankerConfig, load_ranker
from retriever.ranker_step import RankerStep, Watch, groups_of
from retriever.ranks import Ranks
from retriever.source_tally import SourceTally
from retriever.store import Store
from retriever.trained_ranker import TrainedRanker
from tests.stand_ins import tiny_store, write_tiny_data
from tests.tiny_ranker import write_tiny_ranker

pytestmark = pytest.mark.usefixtures("own_precision")

CONFIGS = [RankingLossConfig(name) for name in RANKING_LOSSES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranker")
    write_tiny_ranker(folder / "ranker")
    tiny_store(folder / "store", write_tiny_data(folder / "data"))
    return folder


def opened(folder: Path) -> Examples:
    corpus = Corpus(Store(folder / "store").corpora.at(0))
    queries = load_query_set(folder / "data", "train", corpus, skip_missing=False, warn=print)
    return Examples(corpus, queries, in_batch=True, seed=3)


def batch_of(examples: Examples, k: int = 5) -> Batch:
    """Six queries; the first has no negative, the second one, the others up to k."""
    rows = np.arange(6, dtype=np.int32)
    drawn = np.stack([(rows * 7 + 11 * place + 1) % 60 for place in range(k)], axis=1).astype(np.int32)
    mask = np.ones(drawn.shape, np.bool_)
    mask[0], mask[1, 1:] = False, False
    return examples.batch(rows, 0, Negatives(np.where(mask, drawn, -1), np.zeros(drawn.shape, np.float32), mask))


def loss_of(config: RankingLossConfig) -> Any:
    def loss(logits: Tensor, mask: Tensor, teacher: Tensor | None) -> Tensor:
        return RANKING_LOSSES[config.name](Groups(logits[..., 0], mask, teacher), config)

    return loss


def teacher(queries: Any, passages: Any) -> FloatArray:
    """Scores by the texts' lengths; it has none for pairs of equal length."""
    apart = [len(query) - len(passage) for query, passage in zip(queries, passages, strict=True)]
    return np.array([np.nan if one == 0 else one / 9 for one in apart], np.float32)


def step_of(folder: Path, config: RankingLossConfig, *, fast: bool = True, dropout: bool = True) -> RankerStep:
    ranker = load_ranker(RankerConfig(str(folder / "ranker")))
    if not dropout:
        for module in ranker.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        ranker.classifier.config.attention_probs_dropout_prob = 0.0
    trained = TrainedRanker(ranker).train()
    if fast:
        assert trained.train_fast(torch.float32, checkpointing=False) is None
    accelerator = Accelerator(cpu=True)
    step = RankerStep(
        trained, accelerator.prepare(trained), opened(folder), loss_of(config), accelerator, Ranks(accelerator), 3
    )
    step.teacher = teacher if config.name == "margin_mse" else None
    return step


def gradients(step: RankerStep) -> dict[str, Tensor]:
    found = {name: one.grad.clone() for name, one in step.trained.named_parameters() if one.grad is not None}
    step.trained.zero_grad()
    return found


# ---- groups


def test_a_group_is_a_positive_and_its_own_negatives(folder: Path) -> None:
    batch = batch_of(opened(folder))
    columns, mask = groups_of(batch, 5)
    assert columns[:, 0].tolist() == batch.positive.tolist()
    for query, (row, kept) in enumerate(zip(columns, mask, strict=True)):
        assert row[kept][1:].tolist() == np.flatnonzero(batch.hard[query]).tolist()
    assert mask.sum(axis=1).tolist()[:2] == [1, 2]


def test_no_known_positive_is_a_negative_of_its_query(folder: Path) -> None:
    examples = opened(folder)
    rows = np.arange(6, dtype=np.int32)
    own = np.array([examples.queries.positives(int(row))[0] for row in rows], np.int32)
    drawn = np.stack([own, np.roll(own, 1)], axis=1)
    batch = examples.batch(rows, 0, Negatives(drawn, np.zeros(drawn.shape, np.float32), np.ones(drawn.shape, np.bool_)))
    columns, mask = groups_of(batch, 5)
    for query, (row, kept) in enumerate(zip(columns, mask, strict=True)):
        negatives = batch.passage_rows[row[kept][1:]]
        assert not np.isin(negatives, examples.queries.positives(query)).any()
    assert mask.sum() > len(rows)


def test_before_the_first_set_other_queries_positives_are_the_negatives(folder: Path) -> None:
    batch = opened(folder).batch(np.arange(6, dtype=np.int32), 0, None)
    columns, mask = groups_of(batch, 3)
    assert mask.shape == (6, 4) and mask.all()
    assert all(len({*row}) == 4 for row in columns.tolist())
    assert all(batch.allowed[query, column] for query, row in enumerate(columns) for column in row)
    assert len({*columns[:, 1].tolist()}) == 6  # not the same one for all
    lonely = opened(folder).batch(np.zeros(1, np.int32), 0, None)
    assert groups_of(lonely, 3)[1].tolist() == [[True]]


# ---- gradients


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("budget", [8, 40, 4096])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda one: one.name)
def test_the_gradient_is_that_of_a_plain_loop_over_queries(
    folder: Path, config: RankingLossConfig, budget: int, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 8 tokens each group is larger than a micro-batch, at 40 some are, at 4096 all groups are one."""
    monkeypatch.setitem(TOKEN_BUDGETS, "cpu", budget)
    step = step_of(folder, config, fast=fast, dropout=False)
    batch = batch_of(step.examples)
    loss = step.backward(batch, last=True)
    found = gradients(step)
    columns, mask = groups_of(batch, 5)
    queries, passages = step.examples.texts(batch)
    losses = []
    for query, row, kept in zip(queries, columns, mask, strict=True):
        read = [passages[column] for column in row[kept]]
        ranker = step.trained.ranker
        logits = ranker.classifier(**ranker.pad(ranker.tokenize([query] * len(read), read)[0])).logits
        taught = torch.from_numpy(teacher([query] * len(read), read))[None]
        groups = Groups(logits[:, 0][None], torch.ones(1, len(read), dtype=torch.bool), taught)
        losses.append(RANKING_LOSSES[config.name](groups, config))
    expected = torch.cat(losses).mean()
    torch.autograd.backward(expected)
    wanted = gradients(step)
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    largest = max(float(one.abs().max()) for one in wanted.values())
    assert largest > 1e-2
    assert max(float((found[name] - wanted[name]).abs().max()) for name in wanted) < 1e-5 * max(1.0, largest)


@pytest.mark.parametrize("budget", [8, 40])
def test_dropout_is_that_of_the_same_micro_batches_in_one_graph(
    folder: Path, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each micro-batch is forwarded once more, in the same order from the same seed, and all go back together."""
    monkeypatch.setitem(TOKEN_BUDGETS, "cpu", budget)
    step = step_of(folder, CONFIGS[0])
    batch = batch_of(step.examples)
    torch.manual_seed(4)
    seen: list[tuple[Any, Tensor, bool]] = []
    model = step.model

    def spied(pairs: Any, tokens: int) -> Tensor:
        state = torch.get_rng_state()
        logits: Tensor = model(pairs, tokens)
        seen.append((pairs, state, torch.is_grad_enabled()))
        return logits

    step.model = spied
    loss = step.backward(batch, last=True)
    found = gradients(step)
    graphs = [(pairs, state) for pairs, state, graph in seen if graph]
    assert len(graphs) > 3
    places = {str(pair): logit for pairs, state in graphs for pair, logit in _forwarded(model, pairs, state, budget)}
    columns, mask = groups_of(batch, 5)
    queries, passages = step.examples.texts(batch)
    losses = []
    for query, row, kept in zip(queries, columns, mask, strict=True):
        read = [passages[column] for column in row[kept]]
        pairs, _ = step.trained.ranker.tokenize([query] * len(read), read)
        logits = torch.stack([places[str(pair)] for pair in pairs])
        losses.append(torch.nn.functional.cross_entropy(logits[None], torch.tensor([0])))
    expected = torch.stack(losses).mean()
    torch.autograd.backward(expected)
    wanted = gradients(step)
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    largest = max(float(one.abs().max()) for one in wanted.values())
    assert max(float((found[name] - wanted[name]).abs().max()) for name in wanted) < 1e-5 * max(1.0, largest)


def _forwarded(model: Any, pairs: Any, state: Tensor, budget: int) -> Iterator[tuple[Any, Tensor]]:
    torch.set_rng_state(state)
    yield from zip(pairs, model(pairs, budget)[:, 0], strict=True)


def test_a_large_group_keeps_no_more_than_a_micro_batch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TOKEN_BUDGETS, "cpu", 16)
    step = step_of(folder, CONFIGS[0])
    sizes: list[int] = []
    model = step.model

    def spied(pairs: Any, tokens: int) -> Tensor:
        sizes.append(sum(len(pair["input_ids"]) for pair in pairs) if len(pairs) > 1 else 0)
        logits: Tensor = model(pairs, tokens)
        return logits

    step.model = spied
    step.backward(batch_of(step.examples), last=True)
    assert sizes and max(sizes) <= step.trained.chunk(16)


def test_batches_of_a_step_add_up(folder: Path) -> None:
    whole, halves = step_of(folder, CONFIGS[0], dropout=False), step_of(folder, CONFIGS[0], dropout=False)
    batch = batch_of(whole.examples)
    whole.backward(batch, last=True)
    halves.accumulation = 2
    loss = [halves.backward(batch, last=last) for last in (False, True)]
    assert loss[0] == pytest.approx(loss[1])
    wanted, found = gradients(whole), gradients(halves)
    assert max(float((found[name] - wanted[name]).abs().max()) for name in wanted) < 1e-5


def test_the_loss_has_raw_logits_of_all_labels(folder: Path, tmp_path: Path) -> None:
    """What activation the ranker's files name changes nothing; a loss may read two heads."""
    write_tiny_ranker(tmp_path, num_labels=2)
    ranker = load_ranker(RankerConfig(str(tmp_path), label=1, activation="sigmoid"))
    step = step_of(folder, CONFIGS[0])
    seen: list[tuple[Tensor, Tensor]] = []

    def loss(logits: Tensor, mask: Tensor, teacher: Tensor | None) -> Tensor:
        seen.append((logits, mask))
        return logits.sum((1, 2)) * 0

    two = dataclasses.replace(step, trained=TrainedRanker(ranker), model=TrainedRanker(ranker), loss=loss)
    two.backward(batch_of(step.examples), last=True)
    logits = torch.cat([one[mask] for one, mask in seen])
    assert logits.shape[1] == 2 and logits.min() < 0 and logits.max() > 1
    assert all(not one[~mask].any() for one, mask in seen)


# ---- sources


@pytest.mark.parametrize("budget", [1 << 20, 120, 1])
def test_what_each_source_pulls_is_that_of_the_whole_batch(
    folder: Path, monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    step = step_of(folder, RankingLossConfig("listwise"), dropout=False)
    monkeypatch.setitem(TOKEN_BUDGETS, "cpu", budget)
    batch, tally = batch_of(step.examples), SourceTally({"ann": 1, "bm25": 8})
    bits = np.where(batch.hard, np.where(np.arange(batch.hard.shape[1]) % 3, 1, 8), 0).astype(np.uint8)
    loss = step.backward(batch, last=True, watch=Watch(tally, bits))
    watched = gradients(step)
    assert step.backward(batch, last=True) == loss
    assert all(torch.equal(one, watched[name]) for name, one in gradients(step).items()), "to listen changes nothing"
    columns, mask = groups_of(batch, 5)
    queries, passages = step.examples.texts(batch)
    lines, places = np.nonzero(mask)
    read = [passages[column] for column in columns[lines, places]]
    logits = np.full(mask.shape, -np.inf)
    step.trained.ranker.eval()
    with torch.no_grad():
        pairs = step.trained.ranker.tokenize([queries[line] for line in lines], read)[0]
        logits[lines, places] = step.trained(pairs, 1 << 20)[:, 0]
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    of_group = np.take_along_axis(bits, columns, axis=1)
    pulls = {name: shares[:, 1:][(of_group[:, 1:] == bit) & mask[:, 1:]] for name, bit in (("ann", 1), ("bm25", 8))}
    total = sum(float(one.sum()) for one in pulls.values())
    for name, one in tally.facts().items():
        assert one["drawn"] == len(pulls[name]) > 0
        assert one["gradient"] == pytest.approx(pulls[name].sum() / total, rel=1e-3)
