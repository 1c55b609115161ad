"""Random 2-layer sequence classifiers of several architectures, saved as Hugging Face folders. Do not know hone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from tests.stand_ins import WORDS

SPECIAL = ["[CLS]", "[PAD]", "[SEP]", "[UNK]"]  # padding is not 0, as RoBERTa has it
USUAL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bert": {**USUAL, "type_vocab_size": 2},
    "roberta": {**USUAL, "type_vocab_size": 1},
    "xlm-roberta": {**USUAL, "type_vocab_size": 1},
    "camembert": {**USUAL, "type_vocab_size": 1},
    "electra": {**USUAL, "embedding_size": 16, "type_vocab_size": 2},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "max_position_embeddings": 64},
    "mpnet": {**USUAL, "relative_attention_num_buckets": 32},
    "modernbert": {**USUAL, "local_attention": 4, "global_attn_every_n_layers": 2, "classifier_pooling": "mean"},
    "deberta-v2": {
        **USUAL,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 8,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
        "pooler_hidden_size": 32,
        "type_vocab_size": 0,
    },
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
}
TWO_SEGMENTS = {"bert", "electra", "deberta-v2", "xlnet"}


def write_tiny_ranker(folder: Path, architecture: str = "bert", **settings: Any) -> Path:
    """Write weights, configuration and tokenizer of a random classifier; ``settings`` go into its configuration.

    The weights are larger than a fresh model's, so that scores of different pairs differ.
    """
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if architecture in TWO_SEGMENTS else [])]
    _write_tokenizer(folder, vocabulary, names, left=architecture == "xlnet")
    given = {**ARCHITECTURES[architecture], "vocab_size": len(vocabulary), "pad_token_id": 1, "num_labels": 1}
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **{**given, **settings})
    from_config: Any = AutoModelForSequenceClassification.from_config  # which has no annotations
    classifier = from_config(config)
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    classifier.save_pretrained(folder)
    return folder


def _write_tokenizer(folder: Path, vocabulary: Mapping[str, int], names: list[str], left: bool) -> None:
    tokenizer = Tokenizer(models.WordLevel(dict(vocabulary), unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")],
    )
    tokens = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    fast: Any = PreTrainedTokenizerFast  # its constructor has no annotations
    side = "left" if left else "right"
    fast(tokenizer_object=tokenizer, model_input_names=names, padding_side=side, **tokens).save_pretrained(folder)
