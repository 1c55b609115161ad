import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from retriever.encoder import DualEncoder, ModelConfig, create_encoder, load_encoder, model_path
from retriever.engines.fast_training import FastTraining
from retriever.errors import CorruptError, InputError
from retriever.tower import Tower, save_tower
from tests.tiny_model import write_tiny_model

FP32 = "torch fp32"
TEXTS = ["baka", "bala beki boli", "duka duke duki duko duku dula"]
LONG = " ".join(["baka"] * 30)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tied(tiny: Path) -> DualEncoder:
    config = ModelConfig(str(tiny), query_prompt="boki ", query_max_length=8, passage_max_length=12)
    return create_encoder(config).eval()


@pytest.fixture
def untied(tiny: Path) -> DualEncoder:
    """Two towers, the passage one moved away from its start."""
    encoder = create_encoder(ModelConfig(str(tiny), tied=False)).eval()
    with torch.no_grad():
        for parameter in encoder.passage.parameters():
            parameter.mul_(1.1)
    return encoder


@pytest.fixture(scope="module")
def saved_with_prompts(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in sentence-transformers' layout that holds more than weights."""
    folder = tmp_path_factory.mktemp("saved")
    encoder = create_encoder(ModelConfig(str(tiny)))
    tower = Tower(encoder.passage.transformer, encoder.passage.tokenizer, "cls", False)
    save_tower(tower, folder, 20, {"query": "boki ", "document": "bula "})
    return folder


def vectors(encoder: DualEncoder, queries: list[str], passages: list[str], budget: int = 64) -> torch.Tensor:
    with torch.no_grad():
        parts = encoder(encoder.tokenize("query", queries)[0], encoder.tokenize("passage", passages)[0], budget)
    return torch.cat(parts)


# ---- texts to vectors


def test_a_prompt_stands_before_each_text_and_counts_in_its_length(tied: DualEncoder) -> None:
    plain = tied.passage.tokenize(["boki baka", "boki bala beki boli"], 64)[0]
    assert tied.tokenize("query", TEXTS[:2]) == (plain, [False, False])
    assert tied.tokenize("passage", TEXTS[:1])[0] == tied.passage.tokenize(["baka"], 64)[0]
    assert sum(tied.tokenize("query", TEXTS)[1]) == 1  # prompt, 6 words and 2 special tokens are 9
    assert not any(tied.tokenize("passage", TEXTS)[1])
    ids, cut = tied.tokenize("passage", [LONG, *TEXTS, LONG])
    assert (max(map(len, ids)), cut) == (12, [True, *[False] * len(TEXTS), True])


@pytest.mark.parametrize("budget", [1, 10, 1000])
def test_vectors_come_in_the_order_of_the_texts(tied: DualEncoder, budget: int) -> None:
    together = vectors(tied, TEXTS, TEXTS[::-1], budget)
    alone = torch.cat([vectors(tied, [text], [])[:1] for text in TEXTS])
    alone_passages = torch.cat([vectors(tied, [], [text])[-1:] for text in TEXTS[::-1]])
    assert torch.allclose(together, torch.cat([alone, alone_passages]), atol=1e-6)


def test_both_ways_to_attend_give_the_same_vectors(tiny: Path) -> None:
    encoder = create_encoder(ModelConfig(str(tiny))).eval()
    fingerprints, expected = encoder.fingerprints(FP32, FP32), vectors(encoder, TEXTS, TEXTS)
    for implementation in ("eager", "sdpa"):
        encoder.attend(implementation)
        assert torch.allclose(vectors(encoder, TEXTS, TEXTS), expected, atol=1e-5)
        assert encoder.fingerprints(FP32, FP32) == fingerprints


def test_a_side_may_have_no_text(tied: DualEncoder) -> None:
    queries, passages = tied([], tied.tokenize("passage", TEXTS)[0], 64)
    assert queries.shape == (0, tied.dimensions)
    assert passages.shape == (3, tied.dimensions)


def test_a_gradient_reaches_the_tower_that_made_the_vectors(untied: DualEncoder) -> None:
    queries, _ = untied(untied.tokenize("query", TEXTS)[0], untied.tokenize("passage", TEXTS)[0], 64)
    queries[:, 0].sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in untied.query.parameters())
    assert not any(p.grad is not None for p in untied.passage.parameters())


def test_tied_towers_are_one_and_untied_start_alike(tied: DualEncoder, tiny: Path) -> None:
    assert tied.query is tied.passage
    untied = create_encoder(ModelConfig(str(tiny), tied=False)).eval()
    assert untied.query is not untied.passage
    assert torch.allclose(vectors(untied, TEXTS, []), vectors(untied, [], TEXTS))
    parameters = sum(p.numel() for p in tied.parameters())
    assert sum(p.numel() for p in untied.parameters()) == 2 * parameters


# ---- the fast path of training


@pytest.mark.parametrize("tied_towers", [True, False])
@pytest.mark.parametrize("budget", [8, 20, 4096])
def test_the_fast_path_gives_the_vectors_and_gradients_of_the_slow_one(
    tiny: Path, tied_towers: bool, budget: int
) -> None:
    found = []
    for fast in (False, True):
        encoder = create_encoder(ModelConfig(str(tiny), tied=tied_towers, dropout=0.0)).train()
        with torch.no_grad():  # towers that differ, so that none can be taken for the other
            encoder.query.transformer.embeddings.word_embeddings.weight.mul_(1.1)
        if fast:
            assert encoder.train_fast(torch.float32, checkpointing=False) == []
            assert encoder.chunk(budget) > budget or budget > 1024
        sides = encoder.tokenize("query", TEXTS)[0], encoder.tokenize("passage", TEXTS[::-1])[0]
        queries, passages = encoder(*sides, budget)
        torch.autograd.backward((queries @ passages.T)[0, 1] + queries[1, 0])
        gradients = {name: one.grad for name, one in encoder.named_parameters() if one.grad is not None}
        found.append((torch.cat([queries, passages]).detach(), gradients))
    (expected, theirs), (vectors_found, ours) = found
    assert torch.allclose(vectors_found, expected, atol=1e-6)
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in theirs)
    assert max(float(one.abs().max()) for one in theirs.values()) > 1e-2


def test_a_side_without_text_takes_the_fast_path_too(tiny: Path) -> None:
    encoder = create_encoder(ModelConfig(str(tiny)))
    encoder.train_fast(torch.float32, checkpointing=False)
    queries, passages = encoder([], encoder.tokenize("passage", TEXTS)[0], 64)
    assert (queries.shape, passages.shape) == ((0, encoder.dimensions), (3, encoder.dimensions))
    assert all(len(side) == 0 for side in encoder([], [], 64))


def test_without_gradients_few_texts_are_in_memory_at_a_time(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = create_encoder(ModelConfig(str(tiny))).eval()
    encoder.train_fast(torch.float32, checkpointing=False)
    ids = encoder.tokenize("passage", TEXTS * 30)[0]
    expected = encoder([], ids, 8)[1].detach()
    embedded: list[int] = []
    embed = FastTraining._embed

    def seen(fast: FastTraining, ids: torch.Tensor, segments: Any) -> torch.Tensor:
        embedded.append(len(ids))
        return embed(fast, ids, segments)

    monkeypatch.setattr(FastTraining, "_embed", seen)
    with torch.no_grad():
        assert torch.equal(encoder([], ids, 8)[1], expected)
    assert sum(embedded) == len(ids) and max(embedded) < len(ids) / 2


def test_one_tower_may_be_fast_and_the_other_not(tiny: Path) -> None:
    encoder = create_encoder(ModelConfig(str(tiny), tied=False, dropout=0.0)).train()
    expected = vectors(encoder, TEXTS, TEXTS)
    encoder.query.transformer.pooler.register_forward_hook(lambda *seen: None)
    assert encoder.train_fast(torch.float32, checkpointing=False) == ["pooler has hooks"]
    assert torch.allclose(vectors(encoder, TEXTS, TEXTS), expected, atol=1e-6)


# ---- fingerprints


def move(tower: Tower) -> None:
    next(tower.parameters()).data[0, 0] += 1


def changed(
    encoder: DualEncoder,
    change: Callable[[DualEncoder], object],
    query: str = FP32,
    passage: str = FP32,
) -> set[str]:
    """Name the fingerprints that ``change`` changes."""
    before = encoder.fingerprints(FP32, FP32)
    change(encoder)
    after = encoder.fingerprints(query, passage)
    return {name for name in ("query", "passage", "space") if getattr(before, name) != getattr(after, name)}


def set_config(**settings: object) -> Callable[[DualEncoder], None]:
    def change(encoder: DualEncoder) -> None:
        encoder.config = replace(encoder.config, **settings)  # type: ignore[arg-type]  # names are given by tests

    return change


def nothing(encoder: DualEncoder) -> None: ...


def test_fingerprints_tell_the_sides_of_an_untied_encoder_apart(untied: DualEncoder) -> None:
    assert changed(untied, lambda it: move(it.query)) == {"query", "space"}
    assert changed(untied, lambda it: move(it.passage)) == {"passage", "space"}
    assert changed(untied, lambda it: setattr(it.query, "pooling", "last")) == {"query"}
    assert changed(untied, lambda it: setattr(it.passage, "pooling", "last")) == {"passage", "space"}
    assert changed(untied, nothing) == set()


def test_fingerprints_name_all_that_makes_a_vector(tied: DualEncoder, tiny: Path) -> None:
    encoder = create_encoder(ModelConfig(str(tiny)))
    assert changed(encoder, lambda it: move(it.passage)) == {"query", "passage", "space"}
    assert changed(encoder, set_config(query_prompt="q: ")) == {"query"}
    assert changed(encoder, set_config(passage_prompt="p: ")) == {"passage"}
    assert changed(encoder, set_config(query_max_length=9)) == {"query"}
    assert changed(encoder, set_config(passage_max_length=9)) == {"passage"}
    assert changed(encoder, nothing, query="torch bf16") == {"query"}
    assert changed(encoder, nothing, passage="openvino fp32") == {"passage"}
    assert changed(encoder, lambda it: setattr(it.passage, "normalize_output", False)) == {"query", "passage", "space"}
    assert changed(encoder, set_config(name="moved")) == set()
    assert changed(encoder, set_config(dropout=0.5)) == set()
    both, config = {"query", "passage"}, encoder.passage.transformer.config
    assert changed(encoder, lambda it: setattr(it.passage.tokenizer, "truncation_side", "left")) == both
    assert changed(encoder, lambda _: setattr(config, "num_attention_heads", 1)) == both
    assert changed(encoder, lambda _: setattr(config, "layer_norm_eps", 0.5)) == both
    assert changed(encoder, lambda _: setattr(config, "hidden_dropout_prob", 0.5)) == set()
    assert changed(encoder, lambda it: it.attend("eager")) == set()


def tokens_changed(encoder: DualEncoder, change: Callable[[DualEncoder], object]) -> set[str]:
    """Name the sides of whose token ids ``change`` changes the fingerprint."""
    before = encoder.fingerprints(FP32, FP32)
    change(encoder)
    after = encoder.fingerprints(FP32, "torch bf16")
    return {side for side in ("query", "passage") if vars(before)[f"{side}_tokens"] != vars(after)[f"{side}_tokens"]}


def test_token_ids_are_keyed_by_all_that_makes_them_and_not_by_weights(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = create_encoder(ModelConfig(str(tiny)))
    assert tokens_changed(encoder, lambda it: move(it.passage)) == set()
    assert tokens_changed(encoder, lambda it: setattr(it.passage, "pooling", "last")) == set()
    assert tokens_changed(encoder, set_config(query_prompt="q: ")) == {"query"}
    assert tokens_changed(encoder, set_config(passage_prompt="p: ")) == {"passage"}
    assert tokens_changed(encoder, set_config(passage_max_length=9)) == {"passage"}
    both = {"query", "passage"}
    tokenizer = encoder.passage.tokenizer
    assert tokens_changed(encoder, lambda _: setattr(tokenizer, "truncation_side", "left")) == both
    assert tokens_changed(encoder, lambda _: tokenizer.add_tokens(["newword"])) == both
    assert tokens_changed(encoder, lambda _: setattr(tokenizer.backend_tokenizer, "normalizer", None)) == both
    assert tokens_changed(encoder, lambda _: monkeypatch.setattr("tokenizers.__version__", "other")) == both


def test_a_fingerprint_is_the_same_in_another_copy(tied: DualEncoder, tmp_path: Path) -> None:
    tied.save(tmp_path)
    assert load_encoder(tmp_path).fingerprints(FP32, FP32) == tied.fingerprints(FP32, FP32)


# ---- on disk


def test_a_saved_encoder_loads_with_its_settings_and_vectors(tied: DualEncoder, tmp_path: Path) -> None:
    tied.save(tmp_path)
    again = load_encoder(tmp_path).eval()
    assert again.config == tied.config
    assert again.query is again.passage
    assert torch.equal(vectors(again, TEXTS, [*TEXTS, LONG]), vectors(tied, TEXTS, [*TEXTS, LONG]))
    assert again.weights_sha256() == tied.weights_sha256()


def test_untied_towers_are_saved_each_on_its_own(untied: DualEncoder, tmp_path: Path) -> None:
    untied.save(tmp_path)
    again = load_encoder(tmp_path).eval()
    assert torch.equal(vectors(again, TEXTS, TEXTS), vectors(untied, TEXTS, TEXTS))
    assert (again.query.weights_sha256(), again.passage.weights_sha256()) == (
        untied.query.weights_sha256(),
        untied.passage.weights_sha256(),
    )
    assert again.query.weights_sha256() != again.passage.weights_sha256()


def test_the_weights_digest_covers_both_towers(untied: DualEncoder) -> None:
    digests = [untied.weights_sha256()]
    for tower in (untied.query, untied.passage):
        move(tower)
        digests.append(untied.weights_sha256())
    assert len({*digests}) == 3


@pytest.mark.parametrize("content", [None, "{", '{"nam": "x"}'])
def test_an_unreadable_settings_file_is_named(tied: DualEncoder, tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "hone.json").write_text(content)
    with pytest.raises(CorruptError, match=r"hone\.json"):
        load_encoder(tmp_path)


# ---- created from a configuration


def test_what_the_run_leaves_open_comes_from_the_model_s_own_files(saved_with_prompts: Path) -> None:
    encoder = create_encoder(ModelConfig(str(saved_with_prompts)))
    assert encoder.config == ModelConfig(
        name=str(saved_with_prompts),
        pooling="cls",
        normalize=False,
        query_prompt="boki ",
        passage_prompt="bula ",
        query_max_length=20,
        passage_max_length=20,
    )


def test_what_the_run_gives_goes_before_the_model_s_own_files(saved_with_prompts: Path) -> None:
    given = ModelConfig(
        name=str(saved_with_prompts),
        pooling="mean",
        normalize=True,
        query_prompt="",
        passage_prompt="duka ",
        query_max_length=5,
        passage_max_length=30,
        dropout=0.2,
    )
    encoder = create_encoder(given)
    assert encoder.config == given
    assert (encoder.passage.pooling, encoder.passage.normalize_output) == ("mean", True)
    assert encoder.tokenize("query", TEXTS[:1])[0] == encoder.passage.tokenize(TEXTS[:1], 64)[0]


def test_a_plain_folder_is_read_with_the_usual_settings(tiny: Path) -> None:
    config = create_encoder(ModelConfig(str(tiny))).config
    assert (config.pooling, config.normalize, config.query_prompt, config.passage_prompt) == ("mean", True, "", "")
    assert (config.query_max_length, config.passage_max_length) == (64, 64)


def test_a_run_can_start_from_an_encoder_of_another_run(tied: DualEncoder, tmp_path: Path) -> None:
    tied.save(tmp_path)
    name = str(tmp_path)
    assert create_encoder(ModelConfig(name)).config == replace(tied.config, name=name)
    other = create_encoder(ModelConfig(name, tied=False, query_prompt="", passage_max_length=9, dropout=0.0))
    assert other.config == replace(
        tied.config, name=name, tied=False, query_prompt="", passage_max_length=9, dropout=0.0
    )
    assert other.query is not other.passage
    assert other.query.weights_sha256() == other.passage.weights_sha256() == tied.passage.weights_sha256()


def test_a_run_that_starts_from_untied_towers_keeps_both(untied: DualEncoder, tmp_path: Path) -> None:
    untied.save(tmp_path)
    again = create_encoder(ModelConfig(str(tmp_path)))
    assert not again.config.tied
    assert again.weights_sha256() == untied.weights_sha256()


@pytest.mark.parametrize("side", ["query", "passage"])
def test_a_length_beyond_the_model_s_positions_is_refused(tiny: Path, side: str) -> None:
    config = ModelConfig(str(tiny), **{f"{side}_max_length": 65})  # type: ignore[arg-type]  # a name of two
    with pytest.raises(InputError, match=f"{side}_max_length = 65: .* at most 64 tokens"):
        create_encoder(config)


@pytest.mark.parametrize(("length", "prompt", "taken"), [(1, "", 2), (2, "", 2), (4, "boki bala", 4), (3, "boki", 3)])
def test_a_length_without_room_for_a_text_is_refused(tiny: Path, length: int, prompt: str, taken: int) -> None:
    with pytest.raises(InputError, match=f"query_max_length = {length}: special tokens and prompt alone take {taken}"):
        create_encoder(ModelConfig(str(tiny), query_max_length=length, query_prompt=prompt))
    create_encoder(ModelConfig(str(tiny), query_max_length=5, query_prompt=prompt))


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        create_encoder(ModelConfig(str(tmp_path / "nowhere")))


def test_minilm_is_a_folder_and_other_names_stay() -> None:
    assert json.loads((Path(model_path("minilm")) / "config.json").read_text())["hidden_size"] == 384
    assert model_path("someone/small") == "someone/small"
    for name in ("minilmm", "MiniLM", "mini-lm"):
        with pytest.raises(InputError, match=r"did you mean 'minilm'\?"):
            model_path(name)
    assert model_path("all-MiniLM-L6-v2") == "all-MiniLM-L6-v2"


def test_a_text_without_any_token_is_refused_by_a_model_that_adds_none(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path)
    rules = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**rules, "post_processor": None}))
    bare = create_encoder(ModelConfig(str(folder)))
    assert [len(one) for one in bare.tokenize("query", ["baka", "baka beki"])[0]] == [1, 2]
    with pytest.raises(InputError, match=r"' ' has no token for this model; leave the text out"):
        bare.tokenize("passage", ["baka", " "])
