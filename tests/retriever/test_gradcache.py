from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from retriever.gradcache import RandomState, cached_backward, chunks_of, sides_in_order
from retriever.losses.contrastive import LossConfig, contrastive_loss
from retriever.losses.terms import Candidates

QUERIES, PASSAGES, SIZE = 6, 10, 7
Chunk = tuple[str, Tensor]


@dataclass
class Setting:
    """A small encoder with dropout and a batch in uneven chunks, in one number format."""

    dtype: torch.dtype
    model: nn.Module = field(init=False)
    chunks: list[Chunk] = field(init=False)
    calls: list[bool] = field(default_factory=list)
    config: LossConfig = field(default_factory=LossConfig)

    def __post_init__(self) -> None:
        torch.manual_seed(3)
        layers = [nn.Linear(SIZE, 16), nn.Dropout(0.3), nn.Tanh(), nn.Linear(16, 5), nn.Dropout(0.2)]
        self.model = nn.Sequential(*layers).to(self.dtype).train()
        inputs = torch.randn(QUERIES + PASSAGES, SIZE, dtype=self.dtype)
        sizes = [("query", 4), ("query", 2), ("passage", 1), ("passage", 5), ("passage", 4)]
        parts = torch.split(inputs, [size for _, size in sizes])
        self.chunks = [(side, part) for (side, _), part in zip(sizes, parts, strict=True)]

    def encode(self, chunk: Chunk) -> Tensor:
        vectors: Tensor = nn.functional.normalize(self.model(chunk[1]), dim=-1)
        return vectors

    def loss(self, vectors: list[Tensor]) -> Tensor:
        """A temperature and a mask, so that a cache that forgets either is seen."""
        queries, passages = torch.cat(vectors[:2]), torch.cat(vectors[2:])
        allowed = torch.ones(QUERIES, PASSAGES, dtype=torch.bool)
        allowed[0, 7] = allowed[3, 1] = False
        candidates = Candidates(torch.arange(QUERIES), allowed, torch.zeros_like(allowed))
        return contrastive_loss(queries @ passages.T, candidates, self.config)

    def synced(self, last: bool) -> AbstractContextManager[None]:
        self.calls.append(last)
        return nullcontext()

    def gradients(self, run: Callable[[], Tensor]) -> tuple[Tensor, list[Tensor]]:
        self.model.zero_grad()
        torch.manual_seed(11)
        loss = run()
        return loss, [parameter.grad.clone() for parameter in self.model.parameters() if parameter.grad is not None]

    def at_once(self, scale: float = 1.0) -> Tensor:
        """The same chunks forwarded with gradient under the same random states, and one backward pass."""
        loss = self.loss([self.encode(chunk) for chunk in self.chunks])
        torch.autograd.backward(loss * scale)
        return loss.detach()

    def cached(self, scale: float = 1.0) -> Tensor:
        return cached_backward(
            self.chunks, self.encode, self.loss, lambda loss: torch.autograd.backward(loss * scale), self.synced
        )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_loss_and_gradients_are_those_of_the_whole_batch_with_dropout(dtype: torch.dtype, tolerance: float) -> None:
    setting = Setting(dtype)
    expected_loss, expected = setting.gradients(setting.at_once)
    loss, found = setting.gradients(setting.cached)
    assert torch.allclose(loss, expected_loss, atol=tolerance)
    assert len(found) == len(expected) == 4
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).abs().max()) < tolerance
        assert float(other.abs().max()) > 1e-3, "a gradient of zero proves nothing"


def test_the_second_pass_draws_the_dropout_of_the_first() -> None:
    setting = Setting(torch.float64)
    seen: list[Tensor] = []
    encode = setting.encode

    def spy(chunk: Chunk) -> Tensor:
        seen.append(encode(chunk))
        return seen[-1]

    setting.encode = spy  # type: ignore[method-assign]  # of this one setting
    setting.gradients(setting.cached)
    first, second = seen[: len(setting.chunks)], seen[len(setting.chunks) :]
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
    assert not any(one.requires_grad for one in first) and all(other.requires_grad for other in second)


def test_the_dropout_of_any_accelerator_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(5)
    module = SimpleNamespace(get_rng_state=generator.get_state, set_rng_state=generator.set_state)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda: torch.device("mps"))
    monkeypatch.setattr("torch.get_device_module", {torch.device("mps"): module}.__getitem__)
    before = RandomState.now()
    drawn = torch.rand(3, generator=generator)
    before.restore()
    assert torch.equal(torch.rand(3, generator=generator), drawn)


def test_what_is_drawn_afterwards_is_as_if_each_chunk_had_been_forwarded_once() -> None:
    setting = Setting(torch.float64)
    setting.gradients(setting.at_once)
    expected = torch.rand(3)
    setting.gradients(setting.cached)
    assert torch.equal(torch.rand(3), expected)


def test_a_scaled_loss_scales_the_gradients_once() -> None:
    setting = Setting(torch.float64)
    _, expected = setting.gradients(lambda: setting.at_once(scale=3.0))
    loss, found = setting.gradients(lambda: setting.cached(scale=3.0))
    assert float(loss) == pytest.approx(float(setting.gradients(setting.at_once)[0]))
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-9)


def test_processes_meet_at_the_last_chunk_alone() -> None:
    setting = Setting(torch.float64)
    setting.gradients(setting.cached)
    assert setting.calls == [False] * 4 + [True]


def test_a_chunk_that_the_loss_ignores_has_no_gradient() -> None:
    setting = Setting(torch.float64)
    chunks = [*setting.chunks, ("passage", torch.randn(3, SIZE, dtype=torch.float64))]
    _, expected = setting.gradients(setting.at_once)
    _, found = setting.gradients(
        lambda: cached_backward(
            chunks, setting.encode, lambda vectors: setting.loss(vectors[:5]), torch.autograd.backward, setting.synced
        )
    )
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-9)


def test_sides_are_split_by_tokens_and_put_back_in_order() -> None:
    sides = [[1] * length for length in (3, 9, 1, 4)], [[2] * length for length in (2, 8)]
    chunks = chunks_of(sides, budget=9)
    assert sum(chunk.side == 0 for chunk in chunks) > 1
    for chunk in chunks:
        assert not chunk.token_ids[1 - chunk.side]
        assert len(chunk.places) * max(map(len, chunk.token_ids[chunk.side])) <= 9
    vectors = [torch.tensor([[float(len(ids))] for ids in chunk.token_ids[chunk.side]]) for chunk in chunks]
    queries, passages = sides_in_order(chunks, vectors, dimensions=1)
    assert queries.flatten().tolist() == [3, 9, 1, 4]
    assert passages.flatten().tolist() == [2, 8]


def test_a_side_without_texts_has_no_vectors() -> None:
    chunks = chunks_of(([[1]], []), budget=4)
    assert sides_in_order(chunks, [torch.ones(1, 3)], dimensions=3)[1].shape == (0, 3)
