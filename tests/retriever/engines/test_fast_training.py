from typing import Any

import pytest
import torch
from torch import Tensor, nn

from retriever.engines.fast_forward import FAMILIES
from retriever.engines.fast_training import DROPOUTS, FastTraining, why_not_fast
from retriever.tower import DROPOUT_KEYS
from tests.retriever.engines.architectures import FAST, GENERIC, ragged, random_transformer

PLAN = [[[0], [4]], [[2], [1, 3]]]
"""The texts of ``ragged`` as two micro-batches of two buckets, one of them with padding."""
ONE_OF_A_FAMILY = ["bert", "distilbert", "mpnet", "electra", "modernbert"]


@pytest.fixture(params=FAST)
def transformer(request: pytest.FixtureRequest) -> Any:
    return random_transformer(FAST[request.param]()).train()


def still(transformer: Any) -> Any:
    """Without dropout."""
    for module in transformer.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    return transformer


def texts_of(ids: Tensor, mask: Tensor) -> list[list[int]]:
    return [row[: int(count)].tolist() for row, count in zip(ids, mask.sum(1), strict=True)]


def states(fast: FastTraining, ids: Tensor, mask: Tensor) -> Tensor:
    """The hidden states in the texts' order, 0 in padded places."""
    texts = texts_of(ids, mask)
    together: list[Tensor] = [torch.empty(0)] * len(texts)
    found = fast([[[texts[place] for place in bucket] for bucket in batch] for batch in PLAN])
    for places, (own, own_mask) in zip([bucket for batch in PLAN for bucket in batch], found, strict=True):
        for place, state, kept in zip(places, own, own_mask, strict=True):
            together[place] = nn.functional.pad(state * kept[:, None], (0, 0, 0, ids.shape[1] - len(state)))
    return torch.stack(together)


def gradients(transformer: Any, output: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Of a sum that weighs each number differently."""
    weights = torch.sin(torch.arange(output.numel())).view(output.shape) * mask[:, :, None]
    transformer.zero_grad()
    torch.autograd.backward((output * weights).sum())
    return {name: one.grad.clone() for name, one in transformer.named_parameters() if one.grad is not None}


def fast_of(transformer: Any, dtype: torch.dtype = torch.float32, *, checkpointing: bool = False) -> FastTraining:
    assert why_not_fast(transformer) is None
    return FastTraining(transformer, dtype, transformer.config.pad_token_id, checkpointing=checkpointing)


def test_every_fast_family_says_where_it_drops() -> None:
    assert {*DROPOUTS} == {*FAMILIES}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_states_and_gradients_are_those_of_transformers(transformer: Any, checkpointing: bool) -> None:
    ids, mask = ragged(transformer.config.pad_token_id)
    still(transformer).set_attn_implementation("eager")
    theirs = transformer(input_ids=ids, attention_mask=mask).last_hidden_state * mask[:, :, None]
    expected = gradients(transformer, theirs, mask)
    ours = states(fast_of(transformer, checkpointing=checkpointing), ids, mask)
    assert float((ours - theirs).detach().abs().max()) < 2e-5
    found = gradients(transformer, ours, mask)
    assert found.keys() == expected.keys()
    largest = max(float(one.abs().max()) for one in expected.values())
    for name, one in expected.items():
        assert float((found[name] - one).abs().max()) < 1e-5 * max(1, largest), name
        assert found[name].dtype == torch.float32
    assert largest > 1


def test_bf16_gradients_stay_near(transformer: Any) -> None:
    ids, mask = ragged(transformer.config.pad_token_id)
    still(transformer)
    exact, short = (
        gradients(transformer, states(fast_of(transformer, dtype), ids, mask), mask)
        for dtype in (torch.float32, torch.bfloat16)
    )
    one, other = (torch.cat([tensor.flatten() for tensor in found.values()]) for found in (exact, short))
    assert float(torch.cosine_similarity(one, other, 0)) > 0.99
    assert {tensor.dtype for tensor in short.values()} == {torch.float32}


@pytest.mark.parametrize("name", ONE_OF_A_FAMILY)
def test_each_dropout_scatters_the_states_as_transformers_does(name: str) -> None:
    """The same text many times over: how far its states differ from each other, one kind of dropout at a time."""
    ids = torch.arange(3, 11).repeat(400, 1)
    mask = torch.ones_like(ids)
    config = FAST[name]()
    kinds = [key for key in DROPOUT_KEYS if isinstance(getattr(config, key, None), float)]
    assert len(kinds) >= 2
    for kind in kinds:
        config = FAST[name]()
        for key in kinds:
            setattr(config, key, 0.2 if key == kind else 0.0)
        transformer = random_transformer(config).train()
        torch.manual_seed(1)
        theirs = transformer(input_ids=ids, attention_mask=mask).last_hidden_state.detach()
        ours = fast_of(transformer)([[texts_of(ids, mask)]])[0][0].detach()
        assert float(ours.std(0).mean() / theirs.std(0).mean()) == pytest.approx(1, abs=0.08), kind
        error = theirs.std(0).mean() / 400**0.5
        assert float((ours.mean(0) - theirs.mean(0)).abs().mean()) < 2 * error, kind


@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_comes_from_torchs_generator_and_can_be_replayed(transformer: Any, checkpointing: bool) -> None:
    ids, mask = ragged(transformer.config.pad_token_id)
    for module in transformer.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.2
    fast = fast_of(transformer, checkpointing=checkpointing)
    torch.manual_seed(3)
    first = states(fast, ids, mask)
    second = states(fast, ids, mask)
    torch.manual_seed(3)
    with torch.no_grad():
        again = states(fast, ids, mask)
    assert torch.equal(first, again)
    assert not torch.allclose(first, second, atol=1e-3)
    torch.manual_seed(3)
    plain = states(fast_of(transformer), ids, mask)
    one, other = gradients(transformer, first, mask), gradients(transformer, plain, mask)
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in other)


def test_a_model_that_is_not_training_drops_nothing(transformer: Any) -> None:
    ids, mask = ragged(transformer.config.pad_token_id)
    fast = fast_of(transformer.eval())
    assert torch.equal(states(fast, ids, mask), states(fast, ids, mask))


def test_the_layers_bits_do_not_depend_on_the_number_of_threads(transformer: Any) -> None:
    """Those of the embeddings do: there torch shares each sum among its threads."""
    ids, mask = ragged(transformer.config.pad_token_id)
    threads, found = torch.get_num_threads(), []
    for count in (1, 2, 2):
        torch.set_num_threads(count)
        torch.manual_seed(3)
        found.append(gradients(transformer, states(fast_of(transformer), ids, mask), mask))
        torch.set_num_threads(threads)
    one, two, again = found
    assert all(torch.equal(two[name], again[name]) for name in two)
    assert all(torch.equal(one[name], two[name]) for name in one if not name.startswith("embeddings"))


def test_what_is_frozen_gets_no_gradient() -> None:
    transformer = random_transformer(FAST["bert"]()).train()
    transformer.embeddings.requires_grad_(False)
    transformer.encoder.layer[0].requires_grad_(False)
    ids, mask = ragged(0)
    found = gradients(transformer, states(fast_of(transformer), ids, mask), mask)
    assert not any(name.startswith(("embeddings", "encoder.layer.0")) for name in found)
    assert any(name.startswith("encoder.layer.1") for name in found)


@pytest.mark.parametrize("name", GENERIC)
def test_what_is_not_known_here_is_left_to_transformers(name: str) -> None:
    assert why_not_fast(random_transformer(GENERIC[name]())) is not None


def test_an_adapter_or_a_hook_is_left_to_transformers() -> None:
    class Adapted(nn.Linear):
        """A stand-in for an adapter that is not merged."""

    transformer = random_transformer(FAST["bert"]())
    handle = transformer.encoder.layer[0].register_forward_hook(lambda *seen: None)
    assert why_not_fast(transformer) == "encoder.layer.0 has hooks"
    handle.remove()
    assert why_not_fast(transformer) is None
    transformer.encoder.layer[1].attention.self.query = Adapted(32, 32)
    assert why_not_fast(transformer) == "encoder.layer.1.attention.self.query is a Adapted"
