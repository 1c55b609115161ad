"""The forward pass of the BERT family without its overhead: one product for queries, keys and values, weights cast and
packed once, attention fused, no mask where all texts are equally long.

Does not know pooling, tokenizers or training; docs/encoding-speed.md tells what each step gave.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad, scaled_dot_product_attention

from retriever.device import on_device
from retriever.engines.packed_attention import Attention, PackedTexts

MASKED = -1e9
"""Added to scores of padding: finite, since a row of −inf alone would be NaN and spread."""
PACKED_ROWS = 2048
"""Rows of a typical product, which oneDNN chooses the layout of packed weights for."""
SHARED_BITS = 6
"""Leading bits in which numbers of rows may differ: 32 numbers from 1,024 to 2,047, on average 1 % more rows."""

Product = Callable[[Tensor], Tensor]


class Forward(Protocol):
    """What ``fast_forward`` returns."""

    def __call__(self, ids: Tensor, mask: Tensor, segments: Tensor | None = None) -> Tensor:
        """Return the last hidden state [n, length, dim], or [n, 1, dim] of the first token alone.

        All are int64 [n, length], best on the CPU: they are brought to the transformer's device here. ``segments`` tell
        the two texts of a pair apart, 0 and 1, where the model reads them.
        """
        ...


@dataclass(frozen=True)
class Names:
    """Where a family keeps the parts of its layers."""

    layers: str
    qkv: tuple[str, ...]
    attended: str
    attention_norm: str
    up: str
    activation: str
    down: str
    norm: str


_BERT = Names(
    layers="encoder.layer",
    qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
    attended="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    up="intermediate.dense",
    activation="intermediate.intermediate_act_fn",
    down="output.dense",
    norm="output.LayerNorm",
)
_DISTILBERT = Names(
    layers="transformer.layer",
    qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    attended="attention.out_lin",
    attention_norm="sa_layer_norm",
    up="ffn.lin1",
    activation="ffn.activation",
    down="ffn.lin2",
    norm="output_layer_norm",
)
_MPNET = replace(
    _BERT,
    qkv=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
    attended="attention.attn.o",
    attention_norm="attention.LayerNorm",
)
_MODERNBERT = Names(
    layers="layers",
    qkv=("attn.Wqkv",),
    attended="attn.Wo",
    attention_norm="attn_norm",
    up="mlp.Wi",
    activation="mlp.act",
    down="mlp.Wo",
    norm="mlp_norm",
)
FAMILIES = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "electra": _BERT,
    "distilbert": _DISTILBERT,
    "mpnet": _MPNET,
    "modernbert": _MODERNBERT,
}
"""Fast families by their configuration's ``model_type``."""


@dataclass(frozen=True)
class Layer:
    """One layer's products and norms, in the order of their use."""

    qkv: Product
    attended: Product
    attention_norm: Product
    up: Product
    activation: Product
    down: Product
    norm: Product
    kind: str


@dataclass(frozen=True)
class _Prepared:
    """A transformer with its layers, and how they are gone through."""

    transformer: Any
    layers: list[Layer]
    dtype: torch.dtype
    first_only: bool
    packed: bool
    attention: Attention | None


def fast_forward(
    transformer: Any,
    dtype: torch.dtype,
    *,
    first_only: bool = False,
    packed: bool = True,
    attention: Attention | None = None,
) -> Forward | None:
    """Return the forward pass of ``transformer`` in ``dtype``, None if it is not of a family that is known here.

    ``first_only`` computes the last layer for the first token alone, ``packed`` = False keeps to operations that other
    engines can read. With ``attention`` texts are laid end to end where the family allows it. Products are copied,
    embeddings and norms are not: ``transformer`` must not be trained further.
    """
    config, names = transformer.config, names_of(transformer)
    if names is None:
        return None
    parts = _parts(transformer, names)
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * len(parts)
    packed = packed and _packs(next(transformer.parameters()).device, dtype)
    layers = [_layer(part, names, kind, dtype, packed) for part, kind in zip(parts, kinds, strict=True)]
    size = config.hidden_size // config.num_attention_heads
    if config.model_type == "mpnet" or size % 8 or size > 256:
        attention = None  # what is added to its scores, and heads of such a size, no kernel of packed texts takes
    run = _modern if config.model_type == "modernbert" else _classic
    return partial(run, _Prepared(transformer, layers, dtype, first_only, packed, attention))


def names_of(transformer: Any) -> Names | None:
    """Return how the parts of ``transformer`` are called, None if it is not of a family that is known here.

    A decoder is not, nor one whose products are no plain linear layers.
    """
    config = transformer.config
    names = FAMILIES.get(config.model_type)
    if names is None or getattr(config, "is_decoder", False):
        return None
    linear_names = (*names.qkv, names.attended, names.up, names.down)
    parts = _parts(transformer, names)
    plain = all(type(part.get_submodule(name)) is nn.Linear for part in parts for name in linear_names)
    return names if plain else None


def _parts(transformer: Any, names: Names) -> list[Any]:
    return [transformer.get_submodule(f"{names.layers}.{i}") for i in range(transformer.config.num_hidden_layers)]


def _layer(part: Any, names: Names, kind: str, dtype: torch.dtype, packed: bool) -> Layer:
    def of(name: str) -> Any:
        return part.get_submodule(name)

    def product(*modules: str) -> Product:
        weight = torch.cat([of(name).weight.detach() for name in modules]).to(dtype)
        biases = [of(name).bias for name in modules]
        bias = None if biases[0] is None else torch.cat([one.detach() for one in biases]).to(dtype)
        return _product(weight, bias, packed)

    return Layer(
        qkv=product(*names.qkv),
        attended=product(names.attended),
        attention_norm=_norm(of(names.attention_norm), dtype),
        up=product(names.up),
        activation=_activation(part, names),
        down=product(names.down),
        norm=_norm(of(names.norm), dtype),
        kind=kind,
    )


def _product(weight: Tensor, bias: Tensor | None, packed: bool) -> Product:
    if packed:
        reordered = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), PACKED_ROWS)

        def multiply(x: Tensor) -> Tensor:
            product: Tensor = torch.ops.mkldnn._linear_pointwise(x, reordered, bias, "none", [], "")
            return product

        return multiply
    return partial(linear, weight=weight, bias=bias)


def _packs(device: torch.device, dtype: torch.dtype) -> bool:
    if device.type != "cpu" or not torch.backends.mkldnn.enabled:
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _spare(rows: int) -> int:
    """Return how many rows to put behind so many, so that few numbers of rows are ever multiplied.

    oneDNN keeps .6 MB for each of the last 1,024 pairs of a product and a number of rows.
    """
    return -rows % (1 << max(0, rows.bit_length() - SHARED_BITS))


def _norm(module: Any, dtype: torch.dtype) -> Product:
    if isinstance(module, nn.Identity):
        return module
    weight = module.weight.detach().to(dtype)
    bias = None if module.bias is None else module.bias.detach().to(dtype)
    return partial(
        torch.nn.functional.layer_norm,
        normalized_shape=module.normalized_shape,
        weight=weight,
        bias=bias,
        eps=module.eps,
    )


def _activation(part: Any, names: Names) -> Product:
    owner, _, name = names.activation.rpartition(".")
    activation: Product = getattr(part.get_submodule(owner), name)
    return activation


@dataclass(frozen=True)
class PaddedTexts:
    """``n`` texts beside each other, each padded to ``length``; ``bias`` is added to their scores.

    ``spare`` rows without meaning follow where they are multiplied; ``rotation`` is that of ``_rotate``.
    """

    n: int
    length: int
    heads: int
    bias: Tensor | None
    rotation: tuple[Tensor, Tensor] | None = None
    spare: int = 0

    def enter(self, x: Tensor) -> Tensor:
        """[n, length, dim] → [1, rows, dim], or as it is without a spare row."""
        return pad(x.flatten(0, 1), (0, 0, 0, self.spare))[None] if self.spare else x

    def leave(self, x: Tensor) -> Tensor:
        """Undo ``enter``; [n, 1, dim] of first tokens stays."""
        if not self.spare or x.shape[1] == 1:
            return x
        return x[0, : self.n * self.length].view(self.n, self.length, -1)

    def first(self, x: Tensor) -> Tensor:
        """What ``enter`` returns → [n, 1, dim]: each text's first token."""
        return self.leave(x)[:, :1]

    def attend(self, qkv: Tensor, first: bool) -> Tensor:
        """What ``enter`` returns, 3 · dim wide → attended values, or [n, 1, dim] of the first token alone."""
        attended = _attend(self.leave(qkv), self.heads, self.bias, self.rotation, first)
        return attended if first else self.enter(attended)


def _attend(
    qkv: Tensor, heads: int, bias: Tensor | None, rotation: tuple[Tensor, Tensor] | None, first: bool
) -> Tensor:
    """Return attended values [n, length or 1, dim] for ``qkv`` [n, length, 3 · dim]."""
    query, key, value = qkv.view(*qkv.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)
    if rotation is not None:
        query, key = _rotate(query, rotation), _rotate(key, rotation)
    if first:
        query = query[:, :, :1]
        bias = bias if bias is None else bias[:, :, :1]
    return scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2).flatten(2)


def _rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Apply rotary positions (Su et al. 2021): ``rotation`` holds cosines and sines, [1, length, size of a head]."""
    cosine, sine = rotation
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return (x.float() * cosine + turned.float() * sine).to(x.dtype)


def _padding_bias(mask: Tensor, x: Tensor) -> Tensor | None:
    """Return what is added to scores, [n, 1, 1, length] like ``x``, None where nothing is padded."""
    if not torch._C._get_tracing_state() and bool(mask.all()):
        return None
    return on_device(1 - mask, x.device).to(x.dtype)[:, None, None, :] * MASKED


def _embed(transformer: Any, ids: Tensor, segments: Tensor | None) -> Any:
    device = next(transformer.parameters()).device
    ids, segments = on_device(ids, device), None if segments is None else on_device(segments, device)
    x = transformer.embeddings(input_ids=ids, **({} if segments is None else {"token_type_ids": segments}))
    return transformer.embeddings_project(x) if hasattr(transformer, "embeddings_project") else x  # narrow in ELECTRA


def _classic(model: _Prepared, ids: Tensor, mask: Tensor, segments: Tensor | None = None) -> Tensor:
    """Normalise after each residual: BERT (Devlin et al. 2019), RoBERTa, DistilBERT, MPNet, ELECTRA."""
    x: Tensor = _embed(model.transformer, ids, segments).to(model.dtype)
    texts = _laid_out(model, x, mask)
    x = texts.enter(x)
    for number, layer in enumerate(model.layers):
        first = model.first_only and number == len(model.layers) - 1
        attended = layer.attended(texts.attend(layer.qkv(x), first))
        x = layer.attention_norm(attended + (texts.first(x) if first else x))
        x = layer.norm(layer.down(layer.activation(layer.up(x))) + x)
    return texts.leave(x)


def _laid_out(model: _Prepared, x: Tensor, mask: Tensor) -> PaddedTexts | PackedTexts:
    """Return how texts with embeddings ``x`` lie in memory: packed by attention, unless one has no token at all."""
    transformer = model.transformer
    heads = transformer.config.num_attention_heads
    if model.attention is not None and bool(mask[:, 0].all()):
        return PackedTexts(mask, x.device, heads, model.attention)
    bias = _padding_bias(mask, x)
    if transformer.config.model_type == "mpnet":
        relative = transformer.encoder.compute_position_bias(x[:1]).to(x.dtype)
        bias = relative if bias is None else relative + bias
    n, length = mask.shape
    return PaddedTexts(n, length, heads, bias, spare=_spare(n * length) if model.packed else 0)


def _modern(model: _Prepared, ids: Tensor, mask: Tensor, segments: Tensor | None = None) -> Tensor:
    """Normalise before each branch, gate, rotate, look near and far in turn: ModernBERT (Warner et al. 2024)."""
    transformer, layers, dtype, config = model.transformer, model.layers, model.dtype, model.transformer.config
    x = _embed(transformer, ids, segments).to(dtype)
    positions = torch.arange(ids.shape[1], device=x.device)
    full = _padding_bias(mask, x)
    far = (positions[:, None] - positions[None, :]).abs() > config.sliding_window
    near = far.to(dtype)[None, None] * MASKED
    biases = {"full_attention": full, "sliding_attention": near if full is None else near + full}
    rotations = {
        kind: transformer.rotary_emb(x.float(), positions[None], kind) for kind in {layer.kind for layer in layers}
    }
    n, length = mask.shape
    spare = _spare(n * length) if model.packed else 0
    texts = {
        kind: PaddedTexts(n, length, config.num_attention_heads, biases[kind], rotations[kind], spare)
        for kind in rotations
    }
    x = texts[layers[0].kind].enter(x)
    for number, layer in enumerate(layers):
        here = texts[layer.kind]
        first = model.first_only and number == len(layers) - 1
        attended = here.attend(layer.qkv(layer.attention_norm(x)), first)
        x = layer.attended(attended) + (here.first(x) if first else x)
        value, gate = layer.up(layer.norm(x)).chunk(2, dim=-1)
        x = layer.down(layer.activation(value) * gate) + x
    normalized: Tensor = _norm(transformer.final_norm, dtype)(here.leave(x))
    return normalized
