import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from retriever.errors import InputError
from retriever.ranker_files import (
    longest_input,
    refuse_other_modules,
    saved_activation,
    saved_prompt,
)
from retriever.tower import usable_positions
from tests.tiny_ranker import write_tiny_ranker

SIGMOID, IDENTITY = "torch.nn.modules.activation.Sigmoid", "torch.nn.modules.linear.Identity"


def write(folder: Path, name: str, content: Any) -> str:
    (folder / name).write_text(json.dumps(content))
    return str(folder)


def modules(*kinds: str) -> list[dict[str, str]]:
    return [{"path": "", "type": f"sentence_transformers.{kind}"} for kind in kinds]


def limits(folder: Path) -> tuple[int | None, int | None]:
    classifier = AutoModelForSequenceClassification.from_pretrained(folder)
    longest = longest_input(str(folder), classifier, AutoTokenizer.from_pretrained(folder))
    return longest, usable_positions(classifier)


def test_a_plain_folder_and_a_cross_encoder_of_one_module_are_taken(tmp_path: Path) -> None:
    refuse_other_modules(str(tmp_path))
    write(tmp_path, "sentence_bert_config.json", {"transformer_task": "sequence-classification"})
    refuse_other_modules(write(tmp_path, "modules.json", modules("models.Transformer")))


def test_a_module_that_would_be_left_out_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"its module LogitScore \(modules.json\) would be left out"):
        refuse_other_modules(write(tmp_path, "modules.json", modules("a.Transformer", "b.LogitScore")))


def test_another_task_is_named(tmp_path: Path) -> None:
    write(tmp_path, "modules.json", modules("a.Transformer"))
    with pytest.raises(InputError, match="its task is text-generation"):
        refuse_other_modules(write(tmp_path, "sentence_bert_config.json", {"transformer_task": "text-generation"}))


def test_the_newest_place_of_an_activation_goes_first(tmp_path: Path) -> None:
    name = str(tmp_path)
    assert saved_activation(name, AutoConfig.for_model("bert", num_labels=1)) == "sigmoid"
    assert saved_activation(name, AutoConfig.for_model("bert", num_labels=2)) == "identity"
    config = AutoConfig.for_model("bert", num_labels=1, sbert_ce_default_activation_function=IDENTITY)
    assert saved_activation(name, config) == "identity"
    config.sentence_transformers = {"activation_fn": SIGMOID}
    assert saved_activation(name, config) == "sigmoid"
    write(tmp_path, "config_sentence_transformers.json", {"activation_fn": IDENTITY})
    assert saved_activation(name, config) == "identity"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, ""),
        ({"prompts": {"ask": "find: "}}, ""),
        ({"prompts": {"ask": "find: "}, "default_prompt_name": None}, ""),
        ({"prompts": {"ask": "find: "}, "default_prompt_name": "ask"}, "find: "),
    ],
)
def test_only_a_default_prompt_is_used(content: Any, expected: str, tmp_path: Path) -> None:
    assert saved_prompt(write(tmp_path, "config_sentence_transformers.json", content)) == expected


def test_a_default_prompt_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="names the prompt 'ask' but does not hold it"):
        saved_prompt(write(tmp_path, "config_sentence_transformers.json", {"default_prompt_name": "ask"}))


@pytest.mark.parametrize(("architecture", "positions"), [("bert", 64), ("roberta", 62), ("mpnet", 62), ("gpt2", 64)])
def test_positions_that_serve_no_token_do_not_count(architecture: str, positions: int, tmp_path: Path) -> None:
    assert limits(write_tiny_ranker(tmp_path, architecture)) == (positions, positions)


def test_a_model_without_positions_is_bounded_by_its_files_alone(tmp_path: Path) -> None:
    folder = write_tiny_ranker(tmp_path, "xlnet")
    assert limits(folder) == (None, None)
    write(folder, "sentence_bert_config.json", {"max_seq_length": 40})
    assert limits(folder) == (40, None)
