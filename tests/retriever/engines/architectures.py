"""Tiny random transformers of many architectures. It does not know pytest."""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor

SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
MODERN: dict[str, Any] = {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
FAST: dict[str, Callable[[], Any]] = {
    "bert": lambda: transformers.BertConfig(**SIZES),
    "bert-relu": lambda: transformers.BertConfig(**SIZES, hidden_act="relu"),
    "roberta": lambda: transformers.RobertaConfig(**SIZES),
    "xlm-roberta": lambda: transformers.XLMRobertaConfig(**SIZES),
    "camembert": lambda: transformers.CamembertConfig(**SIZES),
    "distilbert": lambda: transformers.DistilBertConfig(
        vocab_size=60, dim=32, n_layers=3, n_heads=4, hidden_dim=48, max_position_embeddings=64
    ),
    "mpnet": lambda: transformers.MPNetConfig(**SIZES),
    "electra": lambda: transformers.ElectraConfig(**SIZES, embedding_size=16),
    "modernbert": lambda: transformers.ModernBertConfig(**SIZES, **MODERN, local_attention=8),
}
GENERIC: dict[str, Callable[[], Any]] = {
    "deberta-v2": lambda: transformers.DebertaV2Config(**SIZES),
    "bert-decoder": lambda: transformers.BertConfig(**SIZES, is_decoder=True),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=8),
}


def random_transformer(config: Any) -> Any:
    """Return a model in evaluation mode whose every weight, biases and norms too, is random."""
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config).eval()  # type: ignore[no-untyped-call]  # theirs
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def ragged(pad_id: int, lengths: tuple[int, ...] = (41, 7, 20, 1, 33)) -> tuple[Tensor, Tensor]:
    """Return ids and mask int64 [n, longest] of random texts of ``lengths``; 5 × 41 is no number of rows as it is."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 60, (len(lengths), max(lengths)), generator=generator)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return ids.masked_fill(mask == 0, pad_id), mask
