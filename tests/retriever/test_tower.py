import json
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import models
from torch.nn.functional import normalize

from retriever.errors import InputError
from retriever.tower import (
    Tower,
    load_tower,
    save_tower,
    saved_max_length,
    saved_normalize,
    saved_pooling,
    saved_prompts,
)
from tests.tiny_model import write_tiny_model, write_tiny_t5
from tests.tiny_ranker import write_tiny_ranker

TEXTS = ["baka", "bala beki boli", "duka duke duki duko duku dula"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


def load(
    folder: Path, pooling: str | None = None, normalized: bool | None = None, dropout: float | None = None
) -> Tower:
    return load_tower(str(folder), pooling=pooling, normalized=normalized, dropout=dropout).eval()


@pytest.fixture(scope="module")
def tower(tiny: Path) -> Tower:
    return load(tiny)


def variant(tower: Tower, pooling: str, normalized: bool = True) -> Tower:
    """The same weights, pooled otherwise."""
    return Tower(tower.transformer, tower.tokenizer, pooling, normalized)


def write_files(folder: Path, **contents: Any) -> str:
    """Write JSON files; a double underscore in a name stands for the slash."""
    for name, content in contents.items():
        path = folder / f"{name.replace('__', '/')}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return str(folder)


def modules(*kinds: str) -> list[dict[str, Any]]:
    return [{"idx": i, "name": str(i), "path": "", "type": f"a.path.to.{kind}"} for i, kind in enumerate(kinds)]


# ---- tokens


def test_a_text_is_cut_to_the_length_and_counted(tower: Tower) -> None:
    ids, cut = tower.tokenize(TEXTS, 5)  # of which two are special tokens
    assert [len(one) for one in ids] == [3, 5, 5]
    assert cut == [False, False, True]
    assert ids[2] == [*tower.tokenize(["duka duke duki"], 64)[0][0][:-1], ids[0][-1]]


def test_a_text_of_just_the_length_is_not_cut(tower: Tower) -> None:
    assert sum(tower.tokenize(TEXTS, 8)[1]) == 0
    assert sum(tower.tokenize(TEXTS, 7)[1]) == 1


def test_padding_is_on_the_right_and_unmarked(tower: Tower) -> None:
    ids, mask = tower.pad([[5, 6, 7], [8]])
    assert (ids.dtype, mask.dtype) == (torch.int64, torch.int64)
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


# ---- vectors


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
@pytest.mark.parametrize("normalized", [True, False])
def test_a_vector_does_not_depend_on_padding(tower: Tower, pooling: str, normalized: bool) -> None:
    tower = variant(tower, pooling, normalized)
    ids, _ = tower.tokenize(TEXTS, 64)
    with torch.no_grad():
        together = tower(*tower.pad(ids))
        alone = torch.cat([tower(*tower.pad([one])) for one in ids])
    assert together.shape == (3, tower.dimensions) and together.dtype == torch.float32
    assert torch.allclose(together, alone, atol=1e-6)
    lengths = together.norm(dim=-1)
    assert torch.allclose(lengths, torch.ones(3), atol=1e-6) == normalized


def test_normalisation_changes_the_length_alone(tower: Tower) -> None:
    plain, unit = variant(tower, "mean", False), variant(tower, "mean", True)
    batch = plain.pad(plain.tokenize(TEXTS, 64)[0])
    with torch.no_grad():
        assert torch.allclose(normalize(plain(*batch), dim=-1), unit(*batch), atol=1e-6)


def test_poolings_differ(tower: Tower) -> None:
    towers = [variant(tower, pooling) for pooling in ("cls", "mean", "last")]
    batch = towers[0].pad(towers[0].tokenize(TEXTS, 64)[0])
    with torch.no_grad():
        cls, mean, last = (tower(*batch) for tower in towers)
    assert not torch.allclose(cls, mean, atol=1e-3)
    assert not torch.allclose(mean, last, atol=1e-3)


@pytest.mark.parametrize("architecture", ["modernbert", "distilbert", "gpt2", "t5"])
def test_dropout_is_set_wherever_a_family_has_it(architecture: str, tmp_path: Path) -> None:
    write_tiny_t5(tmp_path) if architecture == "t5" else write_tiny_ranker(tmp_path, architecture, attention_dropout=0)
    transformer = load(tmp_path, dropout=0.3).transformer
    found = {module.p for module in transformer.modules() if isinstance(module, torch.nn.Dropout)}
    assert found == {0.3}
    assert getattr(transformer.config, "attention_dropout", 0.3) == 0.3


def test_dropout_that_nothing_would_take_is_refused(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retriever.tower.DROPOUT_KEYS", ("another",))
    with pytest.raises(InputError, match=r"dropout = 0\.3: .* has none to set; leave it out"):
        load(tiny, dropout=0.3)


@pytest.mark.parametrize("probability", [0.0, 0.3])
def test_dropout_is_what_the_run_asks_for(tiny: Path, probability: float) -> None:
    tower = load(tiny, dropout=probability)
    found = {module.p for module in tower.modules() if isinstance(module, torch.nn.Dropout)}
    assert found == {probability}
    torch.manual_seed(0)
    batch = tower.pad(tower.tokenize(TEXTS, 64)[0])
    tower.train()
    with torch.no_grad():
        assert torch.equal(tower(*batch), tower(*batch)) == (probability == 0)


# ---- digests


def test_every_weight_counts(tiny: Path) -> None:
    tower = load(tiny)
    before = tower.weights_sha256()
    assert load(tiny).weights_sha256() == before
    for parameter in list(tower.parameters())[::7]:
        value = parameter.data.flatten()[0].clone()
        parameter.data.view(-1)[0] += 1e-3
        assert tower.weights_sha256() != before
        parameter.data.view(-1)[0] = value
    assert tower.weights_sha256() == before


def test_the_tokenizer_is_its_rules_not_the_last_call(tiny: Path, tmp_path: Path) -> None:
    tower = load(tiny)
    before = tower.tokenizer_sha256()
    tower.tokenize(TEXTS, 4)
    tower.tokenizer(TEXTS, padding=True)
    assert tower.tokenizer_sha256() == before
    other = json.loads(tower.tokenizer.backend_tokenizer.to_str())
    vocabulary = other["model"]["vocab"]
    vocabulary["baka"], vocabulary["bake"] = vocabulary["bake"], vocabulary["baka"]
    tower.tokenizer.backend_tokenizer.model = models.WordLevel(vocabulary, unk_token="[UNK]")
    assert tower.tokenizer_sha256() != before


# ---- what cannot be loaded


def test_an_unknown_pooling_names_the_poolings(tiny: Path) -> None:
    with pytest.raises(InputError, match="'max': choose one of cls, mean, last"):
        load(tiny, "max")


def test_a_folder_that_is_none_or_no_model_is_named(tmp_path: Path) -> None:
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(InputError, match="give a folder or a hub id") as caught:
            load(folder)
        assert str(folder) in str(caught.value)


def test_a_file_of_weights_that_is_cut_off_is_named(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"cannot be loaded \(.*incomplete") as caught:
        load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_weights_that_are_not_there_are_not_drawn_at_random(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path) / "model.safetensors"
    weights = load_file(path)
    save_file({name: tensor for name, tensor in weights.items() if "layer.1." not in name}, path)
    with pytest.raises(InputError, match=r"holds no weights for encoder\.layer\.1\.attention\S+ and 15 more; choose"):
        load(tmp_path)
    save_file({name: tensor for name, tensor in weights.items() if "pooler" not in name}, path)
    load(tmp_path)  # nobody reads the pooler


def test_types_of_token_within_a_text_are_refused(tmp_path: Path) -> None:
    path = write_tiny_ranker(tmp_path, "xlnet") / "tokenizer.json"
    load(tmp_path)
    first = '"id": "[CLS]",\n          "type_id": '
    path.write_text(path.read_text().replace(f"{first}0", f"{first}2"))
    with pytest.raises(InputError, match="types of token, which are not read here"):
        load(tmp_path)


def test_a_module_that_would_be_left_out_is_refused(tiny: Path, tmp_path: Path) -> None:
    save_tower(load(tiny), tmp_path, 64, {})
    write_files(tmp_path, modules=modules("Transformer", "Pooling", "Dense", "Normalize"))
    with pytest.raises(InputError, match="Dense"):
        load(tmp_path)


# ---- what sentence-transformers' files say


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": "mean", "include_prompt": True}, "mean"),
        ({"pooling_mode": "lasttoken"}, "last"),
    ],
)
def test_the_pooling_is_read_from_old_and_new_files(tmp_path: Path, config: dict[str, Any], expected: str) -> None:
    assert saved_pooling(write_files(tmp_path, **{"1_Pooling__config": config})) == expected


@pytest.mark.parametrize(
    "config",
    [
        {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
        {"pooling_mode_max_tokens": True},
        {"pooling_mode": "max"},
        {"pooling_mode": ["cls", "mean"]},
        {"pooling_mode": "mean", "include_prompt": False},
    ],
)
def test_a_pooling_that_cannot_be_done_names_the_way_out(tmp_path: Path, config: dict[str, Any]) -> None:
    folder = write_files(tmp_path, **{"1_Pooling__config": config})
    with pytest.raises(InputError, match="cls, mean, last") as caught:
        saved_pooling(folder)
    assert folder in str(caught.value)


def test_normalisation_is_there_if_the_list_names_it(tmp_path: Path) -> None:
    assert saved_normalize(write_files(tmp_path / "a", modules=modules("Transformer", "Pooling", "Normalize")))
    assert not saved_normalize(write_files(tmp_path / "b", modules=modules("Transformer", "Pooling")))


def test_a_plain_folder_says_nothing(tmp_path: Path) -> None:
    folder = str(tmp_path)
    assert saved_pooling(folder) is None
    assert saved_normalize(folder)
    assert saved_prompts(folder) == {"query": "", "passage": ""}


@pytest.mark.parametrize(
    ("files", "model_max_length", "expected"),
    [
        ({}, 20, 20),
        ({}, 10**30, 64),  # the model's positions
        ({"sentence_bert_config": {"max_seq_length": 24}}, 20, 24),
        ({"sentence_bert_config": {}}, 20, 20),
        ({"sentence_bert_config": {"max_seq_length": None}}, 10**30, 64),
        ({"sentence_bert_config": {"max_seq_length": 66}}, 20, 64),
        ({"sentence_xlm-roberta_config": {"max_seq_length": 24}}, 20, 24),
        ({"sentence_bert_config": {"max_seq_length": 25}, "sentence_xlnet_config": {"max_seq_length": 24}}, 20, 25),
    ],
)
def test_the_maximum_length(
    tower: Tower, tmp_path: Path, files: dict[str, Any], model_max_length: int, expected: int
) -> None:
    before, tower.tokenizer.model_max_length = tower.tokenizer.model_max_length, model_max_length
    assert saved_max_length(write_files(tmp_path, **files), tower) == expected
    tower.tokenizer.model_max_length = before


def test_a_model_without_positions_is_bounded_all_the_same(tmp_path: Path) -> None:
    tower = load(write_tiny_t5(tmp_path))
    tower.tokenizer.model_max_length = 10**30
    assert tower.positions is None
    assert saved_max_length(write_files(tmp_path, sentence_bert_config={}), tower) == 512


def test_positions_that_serve_no_token_do_not_count(tmp_path: Path) -> None:
    assert load(write_tiny_ranker(tmp_path / "roberta", "roberta")).positions == 62
    assert load(write_tiny_ranker(tmp_path / "bert", "bert")).positions == 64


@pytest.mark.parametrize(
    ("config", "query", "passage"),
    [
        ({}, "", ""),
        ({"prompts": {"query": "q: ", "document": "d: "}}, "q: ", "d: "),
        ({"prompts": {"query": "q: ", "passage": "p: "}}, "q: ", "p: "),
        ({"prompts": {"corpus": "c: "}}, "", "c: "),
        ({"prompts": {"document": "d: ", "passage": "p: "}}, "", "d: "),
        ({"prompts": {"all": "a: "}, "default_prompt_name": "all"}, "a: ", "a: "),
        ({"prompts": {"query": "", "all": "a: "}, "default_prompt_name": "all"}, "", "a: "),
        ({"prompts": {"query": None, "document": None}, "default_prompt_name": None}, "", ""),
        ({"prompts": {"clustering": "c: "}}, "", ""),
    ],
)
def test_the_prompts(tmp_path: Path, config: dict[str, Any], query: str, passage: str) -> None:
    folder = write_files(tmp_path, config_sentence_transformers=config)
    assert saved_prompts(folder) == {"query": query, "passage": passage}


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text("[{")
    with pytest.raises(InputError, match=r"modules\.json is not JSON"):
        saved_normalize(str(tmp_path))


def test_a_hub_id_s_files_count_as_a_folder_s_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of the hub, as its cache holds it: one pooled by its first token is not pooled by the mean."""
    snapshot = tmp_path / "models--someone--small" / "snapshots" / ("0" * 40)
    write_files(
        snapshot,
        **{"1_Pooling__config": {"pooling_mode_cls_token": True}, "modules": modules("Transformer", "Pooling")},
        config_sentence_transformers={"prompts": {"query": "q: "}},
    )
    references = tmp_path / "models--someone--small" / "refs"
    references.mkdir()
    (references / "main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert saved_pooling("someone/small") == "cls"
    assert not saved_normalize("someone/small")
    assert saved_prompts("someone/small")["query"] == "q: "
    assert saved_pooling("someone/other") is None


# ---- saved


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
@pytest.mark.parametrize("normalized", [True, False])
def test_what_was_saved_loads_as_it_was(tower: Tower, tmp_path: Path, pooling: str, normalized: bool) -> None:
    tower = variant(tower, pooling, normalized)
    save_tower(tower, tmp_path, 17, {"query": "q: ", "document": "d: "})
    again = load(tmp_path)
    assert (again.pooling, again.normalize_output) == (pooling, normalized)
    assert again.weights_sha256() == tower.weights_sha256()
    assert again.tokenizer_sha256() == tower.tokenizer_sha256()
    assert saved_max_length(str(tmp_path), again) == 17
    assert saved_prompts(str(tmp_path)) == {"query": "q: ", "passage": "d: "}


def test_a_slow_tokenizer_is_refused(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        is_fast = False

    monkeypatch.setattr("retriever.tower.AutoTokenizer.from_pretrained", lambda name: Slow())
    with pytest.raises(InputError, match="fast tokenizer"):
        load(tiny)
