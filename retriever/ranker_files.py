"""What a ranker's own files ask for, a CrossEncoder's of sentence-transformers too: activation, prompt, longest input.

Does not know how pairs are scored.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from retriever.errors import InputError
from retriever.lora import merged_state
from retriever.tower import MODULE_TYPES, lower_cases, saved_json, transformer_settings, usable_positions

if TYPE_CHECKING:
    from retriever.ranker import PairClassifier

SENTENCE_TRANSFORMERS = "config_sentence_transformers.json"
SETTINGS = "hone.json"
CLASSES = {"identity": "torch.nn.modules.linear.Identity", "sigmoid": "torch.nn.modules.activation.Sigmoid"}
"""What CrossEncoder calls each activation."""


def save_ranker(model: "PairClassifier", folder: Path) -> None:
    """Write ``folder`` so that ``load_ranker`` needs its name alone, and CrossEncoder loads it with the same scores.

    With several labels CrossEncoder gives the logits of all; which of them means relevant is for ``load_ranker``.
    """
    config = model.config
    assert config.activation is not None
    folder.mkdir(parents=True, exist_ok=True)
    model.classifier.save_pretrained(folder, state_dict=merged_state(model.classifier))
    model.tokenizer.save_pretrained(folder)
    activation, prompt = CLASSES[config.activation], config.prompt
    written: dict[str, Any] = {
        "modules.json": [{"idx": 0, "name": "0", "path": "", "type": f"{MODULE_TYPES}.Transformer"}],
        "sentence_bert_config.json": {
            "transformer_task": "sequence-classification",
            "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
            "module_output_name": "scores",
            "do_lower_case": lower_cases(model.tokenizer),
            **({"max_seq_length": config.max_length} if config.max_length else {}),
        },
        SENTENCE_TRANSFORMERS: {
            "model_type": "CrossEncoder",
            "activation_fn": activation,
            "prompts": {"query": prompt} if prompt else {},
            "default_prompt_name": "query" if prompt else None,
        },
        SETTINGS: {"label": config.label},
        # Where sentence-transformers looked for the same before its version 6.
        "config.json": _with(folder / "config.json", sentence_transformers={"activation_fn": activation}),
    }
    if config.max_length:
        named = {"model_max_length": config.max_length}
        written["tokenizer_config.json"] = _with(folder / "tokenizer_config.json", **named)
    for name, content in written.items():
        (folder / name).write_text(json.dumps(content, indent=1) + "\n")


def _with(path: Path, **entries: Any) -> Any:
    return {**json.loads(path.read_text()), **entries}


def saved_label(name: str) -> int | None:
    """Return the number of the relevant label that ``save_ranker`` wrote, None if the model's files do not say."""
    label: int | None = (saved_json(name, SETTINGS) or {}).get("label")
    return label


def refuse_other_modules(name: str) -> None:
    """Raise InputError if the folder or hub id ``name`` is a CrossEncoder with more than a sequence classifier."""
    kinds = [module["type"].rpartition(".")[2] for module in saved_json(name, "modules.json") or ()]
    others = sorted({*kinds} - {"Transformer"})
    if others:
        raise InputError(
            f"[ranker] name = {name!r}: its module {', '.join(others)} (modules.json) would be left out; "
            "choose a plain sequence classifier"
        )
    task = (transformer_settings(name) or {}).get("transformer_task", "sequence-classification")
    if kinds and task != "sequence-classification":
        raise InputError(f"[ranker] name = {name!r}: its task is {task}; choose a sequence classifier")


def saved_activation(name: str, config: Any) -> str:
    """Return the lower-case name of what CrossEncoder would apply to the logits of a model with ``config``.

    That is what its files name, newest place first, else sigmoid for one label and identity for several.
    """
    saved = (saved_json(name, SENTENCE_TRANSFORMERS) or {}).get("activation_fn")
    saved = saved or (getattr(config, "sentence_transformers", None) or {}).get("activation_fn")
    saved = saved or getattr(config, "sbert_ce_default_activation_function", None)
    if saved:
        return str(saved).rpartition(".")[2].lower()
    return "sigmoid" if config.num_labels == 1 else "identity"


def saved_prompt(name: str) -> str:
    """Return what CrossEncoder would put before each query: the default prompt of the model's files, else ""."""
    config = saved_json(name, SENTENCE_TRANSFORMERS) or {}
    prompts, default = config.get("prompts") or {}, config.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise InputError(f"{name}: {SENTENCE_TRANSFORMERS} names the prompt {default!r} but does not hold it")
    return str(prompts.get(default) or "")


def longest_input(name: str, classifier: nn.Module, tokenizer: Any) -> int | None:
    """Return the tokens of the longest pair: what the model's files say, at most its positions; None if unbounded."""
    named = (transformer_settings(name) or {}).get("max_seq_length") or tokenizer.model_max_length
    limits = [limit for limit in (named, usable_positions(classifier)) if limit is not None and limit < 1e9]
    return min(limits, default=None)
