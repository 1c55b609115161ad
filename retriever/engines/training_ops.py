"""The parts of a training step that torch is slow at on a CPU: dropout, attention with dropout, activation and product.

Does not know models; docs/training-speed.md tells what each part gave.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from retriever.errors import InputError

BLOCK = 2**20
"""Scores that are computed at a time, so that they are still in the cache when they are next needed."""
STEPS = 2**15
"""A place is dropped with a probability that is a multiple of 1 / STEPS."""
Activation = Callable[[Tensor], Tensor]
BITS = {torch.bfloat16: torch.int16, torch.float32: torch.int32}


@dataclass(frozen=True)
class Bucket:
    """``texts`` texts of ``length`` places each; ``mask`` bool [texts, length] marks tokens, None if all are."""

    texts: int
    length: int
    mask: Tensor | None

    @property
    def places(self) -> int:
        """Rows of a packed tensor that it takes."""
        return self.texts * self.length


class Dice:
    """Random numbers for dropout, a function of ``seed`` alone, on whatever thread they are drawn."""

    def __init__(self, *seed: int) -> None:
        """SFC64 (numpy): twice as fast as torch's generator, and it leaves the interpreter to other threads."""
        self._generator = np.random.Generator(np.random.SFC64(seed))

    def throw(self, shape: Sequence[int]) -> Tensor:
        """Return int16 numbers, uniform over the whole range."""
        count = int(np.prod(shape))
        words = self._generator.integers(0, 2**64 - 1, -(-count // 4), np.uint64, endpoint=True)
        return torch.from_numpy(words.view(np.int16)[:count]).view(*shape)


def threshold(p: float) -> int:
    """Return how many of STEPS numbers mean that a place is dropped. Raises InputError unless some places are kept."""
    if not 0 <= round(p * STEPS) < STEPS:
        raise InputError(f"[model] dropout = {p}: choose a number from 0 to below 1")
    return round(p * STEPS)


def scale(p: float) -> float:
    """Return what kept values are multiplied by, so that the mean stays."""
    return STEPS / (STEPS - threshold(p))


def drop(x: Tensor, p: float, dice: Dice) -> Tensor:
    """Return ``x`` with a share ``p`` set to 0 and the others as they are: the caller multiplies by ``scale(p)``."""
    if not threshold(p):
        return x
    dropped: Tensor = _Drop.apply(x, threshold(p), dice)  # type: ignore[no-untyped-call]  # torch gives Function.apply no types
    return dropped


class _Drop(torch.autograd.Function):
    """Keeps a value's bits or clears them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, below: int, dice: Dice) -> Tensor:
        kept = dice.throw(x.shape).bitwise_or_(-STEPS).add_(below).bitwise_right_shift_(STEPS.bit_length() - 1)
        ctx.save_for_backward(kept)  # −1 where kept, 0 where dropped
        return _and(x, kept)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _and(gradients[0], ctx.saved_tensors[0]), None, None


def _and(x: Tensor, kept: Tensor) -> Tensor:
    return _bits(_bits(x) & _widened(kept, x.dtype), x.dtype)


def attend(
    qkv: Tensor, buckets: Sequence[Bucket], heads: int, biases: Sequence[Tensor | None], p: float, dice: Dice
) -> Tensor:
    """Return attended values [places, dim] for packed ``qkv`` [places, 3 · dim], each bucket's texts apart.

    ``biases`` are added to a bucket's scores, [texts or 1, heads or 1, length or 1, length]; a share ``p`` of the
    probabilities is dropped.
    """
    parts, start = [], 0
    for bucket, bias in zip(buckets, biases, strict=True):
        own = qkv[start : start + bucket.places].view(bucket.texts, bucket.length, 3, heads, -1)
        parts.append(_Attend.apply(own, bias, p, dice))  # type: ignore[no-untyped-call]  # torch gives Function.apply no types
        start += bucket.places
    return torch.cat(parts) if len(parts) > 1 else parts[0]


class _Attend(torch.autograd.Function):
    """Softmax attention in blocks of texts. Probabilities are kept once: with their sign set where they are dropped."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor | None, p: float, dice: Dice) -> Tensor:
        texts, length, _, heads, size = qkv.shape
        block = max(1, BLOCK // (heads * length * length))
        attended = torch.empty(texts, length, heads, size, dtype=qkv.dtype)
        kept: list[Tensor] = []
        for start in range(0, texts, block):
            parts = _by_head(qkv[start : start + block])
            scores = torch.bmm(parts[0].mul_(size**-0.5), parts[1].transpose(1, 2))
            if bias is not None:
                own = bias if len(bias) == 1 else bias[start : start + block]
                scores.view(-1, heads, length, length).add_(own)
            shares = torch.softmax(scores, -1)
            if threshold(p):
                negative = _widened(dice.throw(shares.shape).bitwise_and_(STEPS - 1).sub_(threshold(p)), shares.dtype)
                sign = negative.bitwise_and_(torch.iinfo(negative.dtype).min)
                shares = _bits(_bits(shares) | sign, shares.dtype)
            vectors = torch.bmm(_split(shares, p)[0], parts[2]).view(-1, heads, length, size)
            torch.mul(vectors.transpose(1, 2), scale(p), out=attended[start : start + block])
            kept += [parts, shares]
        ctx.save_for_backward(*kept)
        ctx.shape, ctx.block, ctx.p = qkv.shape, block, p
        ctx.bias = bias.shape if bias is not None and ctx.needs_input_grad[1] else None
        return attended.view(texts * length, heads * size)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        texts, length, _, heads, size = ctx.shape
        of_attended = gradients[0].view(texts, length, 1, heads, size)
        of_qkv = torch.empty(ctx.shape, dtype=of_attended.dtype)
        of_bias = None if ctx.bias is None else torch.zeros(ctx.bias, dtype=of_attended.dtype)
        for number, start in enumerate(range(0, texts, ctx.block)):
            own = slice(start, start + ctx.block)
            (query, key, value), signed = ctx.saved_tensors[2 * number : 2 * number + 2]
            of_vectors = _by_head(of_attended[own])[0].mul_(scale(ctx.p))
            shared, shares, kept = _split(signed, ctx.p)
            of_shares = torch.bmm(of_vectors, value.transpose(1, 2))
            if kept is not None:
                _bits(of_shares).bitwise_and_(kept)
            of_scores = torch._softmax_backward_data(of_shares, shares, -1, shares.dtype)
            if of_bias is not None:
                of_all = of_scores.view(-1, heads, length, length)
                of_bias[own if len(of_bias) > 1 else slice(None)] += of_all.sum_to_size(
                    (len(of_all) if len(of_bias) > 1 else 1, *of_bias.shape[1:])
                )
            into = of_qkv[own].permute(2, 0, 3, 1, 4)
            torch.mul(torch.bmm(of_scores, key).view(into[0].shape), size**-0.5, out=into[0])
            into[1].copy_(torch.bmm(of_scores.transpose(1, 2), query).view(into[1].shape))
            into[2].copy_(torch.bmm(shared.transpose(1, 2), of_vectors).view(into[2].shape))
        return of_qkv, of_bias, None, None


def _by_head(x: Tensor) -> Tensor:
    """[texts, length, parts, heads, size] → a copy [parts, texts · heads, length, size]."""
    texts, length, parts, heads, size = x.shape
    by_head = torch.empty(parts, texts * heads, length, size, dtype=x.dtype)
    by_head.view(parts, texts, heads, length, size).copy_(x.permute(2, 0, 3, 1, 4))
    return by_head


def _split(signed: Tensor, p: float) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return kept probabilities, all probabilities, and a mask of bits, None if nothing is dropped."""
    if not threshold(p):
        return signed, signed, None
    bits = _bits(signed)
    kept = (bits >> (8 * bits.element_size() - 1)).bitwise_not_()
    return _bits(bits & kept, signed.dtype), signed.abs(), kept


def _bits(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """View floats as integers, or integers as ``dtype``."""
    return x.view(dtype or BITS[x.dtype])


def _widened(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return int16 numbers as ones that are as wide as ``dtype``: 0 and −1 stay, and so does each sign."""
    return mask.to(BITS[dtype])


def activate_and_multiply(x: Tensor, activation: Activation, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``activation(x)`` @ weightᵀ + bias; ``x`` alone is kept and activated again on the way back."""
    product: Tensor = _ActivatedProduct.apply(x, activation, weight, bias)  # type: ignore[no-untyped-call]  # torch gives Function.apply no types
    return product


class _ActivatedProduct(torch.autograd.Function):
    """What is saved is a quarter of a layer's memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: Activation, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.activation, ctx.biased = activation, bias is not None
        return linear(activation(x), weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        (gradient,) = gradients
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            activated = ctx.activation(x)
        (of_x,) = torch.autograd.grad(activated, x, gradient @ weight)
        of_weight = gradient.t() @ activated.detach() if ctx.needs_input_grad[2] else None
        of_bias = gradient.sum(0) if ctx.biased and ctx.needs_input_grad[3] else None
        return of_x, None, of_weight, of_bias
