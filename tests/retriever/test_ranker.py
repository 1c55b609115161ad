import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from retriever.errors import InputError
from retriever.ranker import PairClassifier, RankerConfig, load_ranker
from tests.tiny_ranker import write_tiny_ranker

QUERIES = ["baka", "bala beki", "duka duke duki duko"]
PASSAGES = ["boka", "bola boli bolo bolu buka buke", "dula"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_ranker(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def two_labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    labels = {0: "irrelevant", 1: "relevant"}
    return write_tiny_ranker(tmp_path_factory.mktemp("two"), num_labels=2, id2label=labels)


def load(folder: Path, **settings: Any) -> PairClassifier:
    return load_ranker(RankerConfig(str(folder), **settings))


# ---- tokens


def test_a_pair_is_query_then_passage(tiny: Path) -> None:
    model = load(tiny)
    (pair,), cut = model.tokenize(["baka"], ["boka bola"])
    assert model.tokenizer.convert_ids_to_tokens(pair["input_ids"]) == "[CLS] baka [SEP] boka bola [SEP]".split()
    assert (pair["token_type_ids"], cut) == ([0, 0, 0, 1, 1, 1], 0)


def test_the_longer_text_is_cut_first_and_the_pair_counted(tiny: Path) -> None:
    pairs, cut = load(tiny, max_length=8).tokenize(QUERIES, PASSAGES)  # of 5, 11 and 8 tokens
    assert ([len(pair["input_ids"]) for pair in pairs], cut) == ([5, 8, 8], 1)
    assert pairs[1]["input_ids"][:4] == load(tiny).tokenize(["bala beki"], [""])[0][0]["input_ids"][:4]


def test_a_prompt_stands_before_the_query(tiny: Path) -> None:
    asked = load(tiny, prompt="boki ").tokenize(["baka"], ["boka"])
    assert asked == load(tiny).tokenize(["boki baka"], ["boka"])


def test_padding_is_on_the_tokenizers_side(tiny: Path) -> None:
    model = load(tiny)
    pairs, _ = model.tokenize(QUERIES[:2], PASSAGES[:2])
    right = model.pad(pairs)
    assert {values.dtype for values in right.values()} == {torch.int64}
    assert right["attention_mask"].sum(1).tolist() == [5, 11]
    assert right["input_ids"][0].tolist() == [*pairs[0]["input_ids"], *[1] * 6]
    model.tokenizer.padding_side = "left"
    left = model.pad(pairs)
    assert left["input_ids"][0].tolist() == [*[1] * 6, *pairs[0]["input_ids"]]
    assert left["token_type_ids"][0].tolist() == [*[0] * 6, *pairs[0]["token_type_ids"]]


# ---- labels


def test_a_label_may_be_a_name_or_a_number(two_labels: Path) -> None:
    by_name, by_number = (load(two_labels, label=label) for label in ("relevant", 1))
    assert by_name.config == by_number.config
    assert replace(by_name.config, label=None) == replace(load(two_labels, label=0).config, label=None)


@pytest.mark.parametrize(
    ("label", "problem"), [(None, "several labels"), ("good", "no label 'good'"), (2, "no label 2")]
)
def test_a_missing_or_unknown_label_names_those_there_are(label: Any, problem: str, two_labels: Path) -> None:
    with pytest.raises(InputError, match=problem + r"; name the one that means relevant: 0 \(irrelevant\), 1"):
        load(two_labels, label=label)


def test_with_two_labels_their_scores_are_each_others_opposite(two_labels: Path) -> None:
    def scores(label: int) -> torch.Tensor:
        model = load(two_labels, label=label)
        with torch.inference_mode():
            result: torch.Tensor = model(model.pad(model.tokenize(QUERIES, PASSAGES)[0]))
        return result

    assert torch.allclose(scores(0), -scores(1))


# ---- fingerprint


def test_whatever_changes_a_score_changes_the_fingerprint(tiny: Path, two_labels: Path, tmp_path: Path) -> None:
    copy = write_tiny_ranker(tmp_path)
    assert load(copy).fingerprint("fp32") == load(tiny).fingerprint("fp32")  # the folder's name is no such thing
    moved = load(tiny)
    next(moved.classifier.parameters()).data[0, 0] += 1
    prints = [
        load(tiny).fingerprint("fp32"),
        load(tiny).fingerprint("bf16"),
        load(tiny).fingerprint("fp32", "another"),
        load(tiny, max_length=9).fingerprint("fp32"),
        load(tiny, prompt="boki ").fingerprint("fp32"),
        load(tiny, activation="identity").fingerprint("fp32"),
        load(two_labels, label=0).fingerprint("fp32"),
        load(two_labels, label=1).fingerprint("fp32"),
        moved.fingerprint("fp32"),
    ]
    assert len({*prints}) == len(prints)


# ---- what cannot be loaded


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give a folder or a hub id") as caught:
        load(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in str(caught.value)


def test_an_encoder_without_a_head_is_refused(tiny: Path, tmp_path: Path) -> None:
    AutoModel.from_pretrained(tiny).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"holds no weights for classifier\.bias, classifier\.weight"):
        load(tmp_path)


def test_a_tokenizer_that_cannot_pad_is_refused(tmp_path: Path) -> None:
    write_tiny_ranker(tmp_path)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = tmp_path / name
        if path.exists():
            path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "pad_token"}))
    with pytest.raises(InputError, match=r"needs a fast tokenizer .* with a padding token"):
        load(tmp_path)


def test_settings_that_the_model_does_not_allow_are_refused(tiny: Path) -> None:
    with pytest.raises(InputError, match=r"max_length = 65: .* reads at most 64 tokens"):
        load(tiny, max_length=65)
    with pytest.raises(InputError, match=r"max_length = 5: special tokens and prompt alone take 5"):
        load(tiny, max_length=5, prompt="boki bala")
    assert load(tiny, max_length=4).config.max_length == 4
    with pytest.raises(InputError, match=r"activation = 'tanh' .*choose one of identity, sigmoid"):
        load(tiny, activation="tanh")
