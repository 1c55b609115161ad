from pathlib import Path

import numpy as np
import pytest
import torch

from retriever import scoring
from retriever.errors import InputError
from retriever.inference import TOKEN_BUDGETS
from retriever.protocols import FloatArray, Ranker
from retriever.ranker import PairClassifier, RankerConfig, load_ranker
from retriever.scoring import TorchRanker
from tests.stand_ins import WORDS
from tests.tiny_ranker import ARCHITECTURES, write_tiny_ranker

QUERIES = [" ".join(WORDS[start : start + start % 5 + 1]) for start in range(40)]
PASSAGES = [" ".join(WORDS[-start - 14 : -start - 1][: 3 + start % 10]) for start in range(40)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PairClassifier:
    return load_ranker(RankerConfig(str(write_tiny_ranker(tmp_path_factory.mktemp("tiny"))), max_length=14))


@pytest.fixture
def ranker(model: PairClassifier) -> TorchRanker:
    return TorchRanker(model, device="cpu")


def one_by_one(ranker: Ranker) -> FloatArray:
    return np.concatenate([ranker.score([query], [text]) for query, text in zip(QUERIES, PASSAGES, strict=True)])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_score_does_not_depend_on_neighbours_or_order(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tiny_ranker(tmp_path, architecture)
    ranker = TorchRanker(load_ranker(RankerConfig(str(folder), activation="identity")), device="cpu")
    together = ranker.score(QUERIES, PASSAGES)
    close = 1e-5 * np.abs(together).max()  # no score is normalised: float32 rounds the large ones more coarsely
    assert np.abs(one_by_one(ranker) - together).max() < close
    assert np.abs(ranker.score(QUERIES[::-1], PASSAGES[::-1])[::-1] - together).max() < close
    monkeypatch.setitem(TOKEN_BUDGETS, "cpu", 60)
    assert np.abs(ranker.score(QUERIES, PASSAGES) - together).max() < close


def test_the_same_pairs_give_the_same_bits(ranker: TorchRanker) -> None:
    assert np.array_equal(ranker.score(QUERIES, PASSAGES), ranker.score(QUERIES, PASSAGES))


def test_scores_are_float32_and_none_for_no_pair(ranker: TorchRanker) -> None:
    scores = ranker.score(QUERIES[:3], PASSAGES[:3])
    assert scores.dtype == np.float32 and scores.shape == (3,)
    none = ranker.score([], [])
    assert none.dtype == np.float32 and none.shape == (0,)
    assert ranker.cut_pairs == 0


def test_empty_texts_have_a_score(ranker: TorchRanker) -> None:
    assert np.isfinite(ranker.score(["", "", "baka"], ["", "boka", ""])).all()


def test_a_pair_without_a_token_is_refused(tmp_path: Path) -> None:
    model = load_ranker(RankerConfig(str(write_tiny_ranker(tmp_path))))
    model.tokenizer.backend_tokenizer.post_processor = None  # as a model without special tokens has it
    with pytest.raises(InputError, match="both empty: this model cannot read that"):
        TorchRanker(model, device="cpu").score(["baka", ""], ["", ""])


def test_blocks_give_the_scores_of_the_whole(ranker: TorchRanker, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, told = ranker.score(QUERIES, PASSAGES), list[int]()
    monkeypatch.setattr(scoring, "BLOCK_PAIRS", 13)
    in_blocks = ranker.score(QUERIES, PASSAGES, lambda done, total: told.append(done))
    assert np.abs(in_blocks - whole).max() < 1e-5
    assert {13, 26, 39, 40} <= {*told}


@pytest.mark.parametrize("pairs", [1, 3, 40])
def test_few_pairs_are_shared_among_the_streams(model: PairClassifier, pairs: int) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        ranker = TorchRanker(model, device="cpu")
    finally:
        torch.set_num_threads(threads)
    told: list[int] = []
    shared = ranker.score(QUERIES[:pairs] * 9, PASSAGES[:pairs] * 9, lambda done, total: told.append(done))
    assert np.abs(shared[:pairs] - TorchRanker(model, device="cpu").score(QUERIES, PASSAGES)[:pairs]).max() < 1e-5
    assert len(told) >= {1: 1, 3: 2, 40: 6}[pairs]


def test_pairs_that_are_cut_are_counted(ranker: TorchRanker) -> None:
    expected = sum(len(f"{query} {text}".split()) + 3 > 14 for query, text in zip(QUERIES, PASSAGES, strict=True))
    ranker.score(QUERIES, PASSAGES)
    assert 0 < ranker.cut_pairs == expected < 40
    ranker.score(QUERIES, PASSAGES)
    assert ranker.cut_pairs == 2 * expected


def test_progress_counts_pairs_up_to_the_last(ranker: TorchRanker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TOKEN_BUDGETS, "cpu", 60)
    told: list[tuple[int, int]] = []
    ranker.score(QUERIES, PASSAGES, lambda done, total: told.append((done, total)))
    assert told == sorted(told) and len(told) > 3
    assert told[-1] == (40, 40)


def test_progress_may_cancel(ranker: TorchRanker) -> None:
    def cancel(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ranker.score(QUERIES, PASSAGES, cancel)


def test_a_pair_is_one_of_each(ranker: TorchRanker) -> None:
    with pytest.raises(ValueError, match="3 queries but 2 passages"):
        ranker.score(QUERIES[:3], PASSAGES[:2])


def test_what_is_no_text_is_named_by_pair_and_part(ranker: TorchRanker) -> None:
    with pytest.raises(InputError, match="pair 1: the passage must be a string, not NoneType"):
        ranker.score(["baka", "bala"], ["boka", None])  # type: ignore[list-item]  # what a broken file would give


def test_a_ranker_of_a_model_in_training_knows_no_dropout(model: PairClassifier) -> None:
    ranker = TorchRanker(model.train(), device="cpu")
    assert np.array_equal(ranker.score(QUERIES, PASSAGES), ranker.score(QUERIES, PASSAGES))


def test_precisions_have_fingerprints_of_their_own(model: PairClassifier) -> None:
    exact, half = (TorchRanker(model, precision, "cpu") for precision in ("fp32", "bf16"))
    assert half.score(QUERIES, PASSAGES).dtype == np.float32
    assert exact.fingerprint != half.fingerprint
    assert TorchRanker(model, "auto", "cpu").fingerprint in {exact.fingerprint, half.fingerprint}
    with pytest.raises(InputError, match="'fp8': choose one of"):
        TorchRanker(model, "fp8")


def test_no_gradient_is_kept(ranker: TorchRanker) -> None:
    ranker.score(QUERIES, PASSAGES)
    assert all(parameter.grad is None for parameter in ranker._model.parameters())
    assert torch.is_grad_enabled()
