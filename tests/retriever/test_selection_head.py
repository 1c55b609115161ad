"""The second head: what the classifier gives with it and without it, and a run that learns both and saves one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import CrossEncoder

from retriever.errors import InputError
from retriever.losses.ranking import RankingLossConfig
from retriever.phases import PhasesConfig
from retriever.ranker import RankerConfig, load_ranker
from retriever.refresh_policy import RefreshConfig
from retriever.scoring import TorchRanker
from retriever.selection_head import SELECTION, add_selection
from retriever.trained_ranker import TrainedRanker
from tests.retriever.training_stand_ins import TRAIN, Bench, ignore, stopping_at
from tests.tiny_ranker import ARCHITECTURES, write_tiny_ranker

pytestmark = pytest.mark.usefixtures("own_precision")

QUERIES, PASSAGES = ["baka boku", "dala"], ["beki bola", "baka dala deli"]
LAST = TRAIN.max_steps


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_relevance_stays_what_it_was_and_selection_stands_beside_it(
    architecture: str, fast: bool, tmp_path: Path
) -> None:
    ranker = load_ranker(RankerConfig(str(write_tiny_ranker(tmp_path / "ranker", architecture))))
    pairs = ranker.tokenize(QUERIES, PASSAGES)[0]
    alone = ranker.classifier(**ranker.pad(pairs)).logits.detach()
    head = add_selection(ranker.classifier)
    trained = TrainedRanker(ranker)
    if fast:
        trained.train_fast(torch.float32, checkpointing=False)
    assert torch.equal(ranker.classifier(**ranker.pad(pairs)).logits, alone), "where nothing is trained, one label"
    with torch.no_grad():
        head.heads.selection.bias.fill_(3.0)
    trained.eval()
    head.heads.train()  # the rest without dropout
    both = trained(pairs, 4096)
    assert both.shape == (2, 2) and (both[:, :1] - alone).abs().max() < 1e-4
    assert both[:, 1].tolist() == pytest.approx([3.0, 3.0]), "it begins at 0"


def test_without_it_the_classifier_is_as_before(tmp_path: Path) -> None:
    ranker = load_ranker(RankerConfig(str(write_tiny_ranker(tmp_path / "ranker", "roberta"))))
    before = {name: value.clone() for name, value in ranker.classifier.state_dict().items()}
    head = add_selection(ranker.classifier)
    assert ranker.classifier.state_dict().keys() != before.keys()
    with head.taken_off():
        assert ranker.classifier.state_dict().keys() == before.keys()
    assert head.parent.out_proj is head.heads
    with torch.no_grad():
        head.heads.selection.weight.fill_(1.0)
    head.save(tmp_path)
    other = add_selection(load_ranker(RankerConfig(str(tmp_path / "ranker"))).classifier)
    other.restore(tmp_path)
    assert torch.equal(other.heads.selection.weight, head.heads.selection.weight)


def test_a_ranker_of_several_labels_is_refused(tmp_path: Path) -> None:
    ranker = load_ranker(RankerConfig(str(write_tiny_ranker(tmp_path, num_labels=3)), label=1))
    with pytest.raises(InputError, match="needs a ranker of one label, this one has 3"):
        add_selection(ranker.classifier)


def coupled(folder: Path) -> Bench:
    """A run that trains a ranker alone, with both heads."""
    made = Bench(folder, phases=PhasesConfig(1, 0), refresh=RefreshConfig(trigger="once"))
    made.ranker = replace(made.ranking(), loss=RankingLossConfig("cet", clip=4.0))
    return made


def test_both_heads_learn_and_relevance_alone_is_saved(tmp_path: Path) -> None:
    made = coupled(tmp_path)
    assert made.run().reason == "finished"
    first, last = made.store.checkpoints.at(0), made.newest()
    last.verify()
    selection = [load_file(one.path / "training" / SELECTION) for one in (first, last)]
    assert not selection[0]["weight"].any() and selection[1]["weight"].abs().max() > 1e-4
    ranker = load_ranker(RankerConfig(str(last.path / "ranker")))
    assert ranker.classifier.config.num_labels == 1
    assert last.facts["ranker"]["fingerprint"] == ranker.fingerprint("fp32")
    assert first.facts["ranker"]["weights_sha256"] != last.facts["ranker"]["weights_sha256"]
    theirs = CrossEncoder(str(last.path / "ranker"), device="cpu").predict([*zip(QUERIES, PASSAGES, strict=True)])
    assert TorchRanker(ranker, device="cpu").score(QUERIES, PASSAGES) == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize("step", [1, LAST - 2])
def test_an_interrupted_run_ends_with_the_same_heads(tmp_path: Path, step: int) -> None:
    undisturbed, made = coupled(tmp_path / "whole"), coupled(tmp_path / "parts")
    undisturbed.run()
    made.hears = stopping_at("step", step)
    assert made.run().step == step
    made.hears = ignore
    made.run()
    assert made.both_weights()[-1] == undisturbed.both_weights()[-1]
    for name in (SELECTION, "ranker_optimizer.safetensors"):
        mine, theirs = (load_file(one.newest().path / "training" / name) for one in (made, undisturbed))
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
