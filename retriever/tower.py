"""One tower: a Hugging Face encoder with its tokenizer, pooling and normalisation, in sentence-transformers' layout.

Does not know queries from passages, nor training from inference.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch
from huggingface_hub import hf_hub_download, is_offline_mode
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import SafetensorError
from tokenizers import normalizers
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, AutoTokenizer
from transformers.utils import logging as transformers_logging

from retriever.durable import sha256_json
from retriever.errors import InputError
from retriever.lora import merged_state
from retriever.pooling import POOLINGS, SENTENCE_TRANSFORMERS_MODES
from retriever.token_batches import pad

MODULE_TYPES = "sentence_transformers.models"
MODULES = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
POOLING_FILE = "1_Pooling/config.json"
UNSAID_MAX_LENGTH = 512
UNREAD_KEYS = ("architectures", "dtype", "torch_dtype", "transformers_version")
"""What a configuration says of a model's files alone."""
UNBOUNDED = 1_000_000_000
"""From here on a tokenizer's maximum length means that it has none."""
DROPOUT_KEYS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "dropout",
    "attention_dropout",
    "embedding_dropout",
    "mlp_dropout",
    "dropout_rate",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
)
ENCODER_ALONE = ("t5", "mt5", "umt5")
"""Types of model with a decoder that no vector needs; sentence-transformers leaves it out, too."""
SETTINGS_FILES = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""What sentence-transformers called the file of maximum length and case, in the order in which it looks for them."""


class Tower(nn.Module):
    """Texts' tokens to vectors: transformer, pooling, optional normalisation to length 1."""

    def __init__(self, transformer: Any, tokenizer: Any, pooling: str, normalize_output: bool) -> None:
        """``pooling`` is a key of POOLINGS. Raises InputError naming the keys there are."""
        super().__init__()
        if pooling not in POOLINGS:
            raise InputError(f"[model] pooling = {pooling!r}: choose one of {', '.join(POOLINGS)}")
        self.transformer = transformer
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.normalize_output = normalize_output

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        size: int = self.transformer.config.hidden_size
        return size

    @property
    def pad_id(self) -> int:
        """The token that fills the places after a text's end."""
        return self.tokenizer.pad_token_id or 0

    @property
    def positions(self) -> int | None:
        """Tokens that the transformer can tell apart by position, None if its configuration names no number."""
        return usable_positions(self.transformer)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return vectors [n, dim] for token ids and mask, both int64 [n, length], padded on the right."""
        states = self.transformer(input_ids=input_ids, attention_mask=attention_mask)
        return self.pool(states.last_hidden_state, attention_mask)

    def pool(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        """Return float32 vectors [n, dim] for token vectors [n, length, dim]; "cls" needs the first token's alone."""
        vectors = POOLINGS[self.pooling](tokens, attention_mask)
        return normalize(vectors.float(), dim=-1) if self.normalize_output else vectors.float()

    def tokenize(self, texts: Sequence[str], max_length: int) -> tuple[list[list[int]], list[bool]]:
        """Return the token ids of each text, cut to ``max_length``, and which texts were cut."""
        if not texts:  # which the tokenizer refuses
            return [], []
        encoded = self.tokenizer(
            list(texts), truncation=True, max_length=max_length, padding=False, return_attention_mask=False
        )
        cut = [bool(one.overflowing) for one in encoded.encodings]
        ids: list[list[int]] = encoded["input_ids"]
        return ids, cut

    def pad(self, token_ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Return input ids and mask, int64 [n, longest], padded on the right."""
        ids, mask = pad(token_ids, self.pad_id)
        return torch.from_numpy(ids), torch.from_numpy(mask)

    def weights_sha256(self) -> str:
        """Digest of all weights: names, shapes and float32 values."""
        return weights_sha256(self.transformer)

    def tokenizer_sha256(self) -> str:
        """Digest of the tokenizer's rules and vocabulary."""
        return tokenizer_sha256(self.tokenizer)

    @property
    def settings(self) -> dict[str, Any]:
        """What else decides a text's vector: the end that is cut, and the configuration beside weights and dropout."""
        said = json.loads(self.transformer.config.to_json_string())
        read = {key: said[key] for key in said if not (key[0] == "_" or key in UNREAD_KEYS or "drop" in key)}
        return {"cut": self.tokenizer.truncation_side, "config": read}

    @property
    def tokenized_by(self) -> list[str]:
        """What else decides a text's ids: which end is cut, and the library."""
        return [self.tokenizer.truncation_side, tokenizers.__version__]


def weights_sha256(transformer: nn.Module) -> str:
    """Digest of all weights, adapters merged: names, shapes and float32 values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(merged_state(transformer).items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().data)
    return digest.hexdigest()


def tokenizer_sha256(tokenizer: Any) -> str:
    """Digest of a tokenizer's rules and vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return sha256_json(sorted(tokenizer.get_vocab().items()))
    rules = json.loads(backend.to_str())
    rules.pop("padding", None), rules.pop("truncation", None)  # call arguments leave traces there
    return sha256_json(rules)


def usable_positions(model: Any) -> int | None:
    """Return how many tokens the model can tell apart by position, None if its configuration names no number.

    RoBERTa and its kind count from behind the padding's position, so the first rows of their table serve no token.
    """
    positions: int = getattr(model.config, "max_position_embeddings", None) or -1
    for module in model.modules():
        table = getattr(module, "position_embeddings", None)
        if isinstance(table, nn.Embedding) and table.padding_idx is not None:
            positions = min(positions, table.num_embeddings - table.padding_idx - 1)
    return positions if positions > 0 else None


def load_tower(name: str, *, pooling: str | None, normalized: bool | None, dropout: float | None) -> Tower:
    """Load a tower from a folder or hub id; None takes what the model's own files say (else mean, normalised).

    Raises InputError if the model cannot be found or read, lacks weights or a fast tokenizer, has a part that would be
    left out here, or nothing that ``dropout`` could be set for.
    """
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # its bars would cut through our own progress
    try:
        config = AutoConfig.from_pretrained(name)
        if dropout is not None:
            _set_dropout(config, dropout, name)
        kind = AutoModelForTextEncoding if config.model_type in ENCODER_ALONE else AutoModel
        transformer, report = kind.from_pretrained(name, config=config, dtype=torch.float32, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(name)
        normalizes = saved_normalize(name)
        pooling = pooling or saved_pooling(name) or "mean"
        settings = transformer_settings(name) or {}
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"[model] name = {name!r}: cannot be loaded ({reason}); give a folder or a hub id") from error
    if not tokenizer.is_fast:
        raise InputError(f"[model] name = {name!r}: needs a fast tokenizer (tokenizer.json)")
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key.split("."))
    if missing:  # transformers has drawn them at random
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(f"[model] name = {name!r}: holds no weights for {missing[0]}{more}; choose a trained encoder")
    if any(tokenizer("a").get("token_type_ids", ())):
        raise InputError(f"[model] name = {name!r}: marks places of a text by types of token, which are not read here")
    lower_case(tokenizer, settings)
    return Tower(transformer, tokenizer, pooling, normalizes if normalized is None else normalized)


def _set_dropout(config: Any, dropout: float, name: str) -> None:
    keys = [key for key in DROPOUT_KEYS if isinstance(getattr(config, key, None), int | float)]
    if not keys:
        raise InputError(f"[model] dropout = {dropout}: {name} has none to set; leave it out")
    for key in keys:
        setattr(config, key, dropout)


def _normalizers(tokenizer: Any) -> list[Any]:
    own: Any = tokenizer.backend_tokenizer.normalizer
    several = isinstance(own, normalizers.Sequence)
    return [] if own is None else [*own] if several else [own]


def lower_cases(tokenizer: Any) -> bool:
    """Tell whether ``tokenizer`` lowers each text's case by a rule of its own."""
    return any(isinstance(one, normalizers.Lowercase) for one in _normalizers(tokenizer))


def lower_case(tokenizer: Any, settings: Mapping[str, Any]) -> None:
    """Let ``tokenizer`` lower each text's case before all else, if ``transformer_settings`` say so."""
    if settings.get("do_lower_case") and not lower_cases(tokenizer):
        first = normalizers.Lowercase()
        tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([first, *_normalizers(tokenizer)])


def saved_json(name: str, file: str) -> Any:
    """Return what ``file`` beside the weights of a folder or hub id says, None if the model has no such file.

    Raises InputError if it is not JSON.
    """
    try:
        path = Path(name) / file if Path(name).is_dir() else Path(hf_hub_download(name, file))
        return json.loads(path.read_text())
    except LocalEntryNotFoundError:
        if not is_offline_mode():  # the hub was not reached, so nobody knows whether there is such a file
            raise
        return None
    except (FileNotFoundError, EntryNotFoundError):
        return None
    except ValueError as error:
        raise InputError(f"{name}: {file} is not JSON ({error}); download or save the model again") from error


def transformer_settings(name: str) -> dict[str, Any] | None:
    """Return maximum length, case and task as sentence-transformers saved them, None if it has not."""
    files = (saved_json(name, file) for file in SETTINGS_FILES)
    return next((found for found in files if found is not None), None)


def saved_pooling(name: str) -> str | None:
    """Return the pooling that the model's sentence-transformers files ask for, None if they say nothing.

    Raises InputError if that is not one pooling of all tokens.
    """
    config = saved_json(name, POOLING_FILE)
    if config is None:
        return None
    flags = [ours for ours, theirs in SENTENCE_TRANSFORMERS_MODES.items() if config.get(f"pooling_mode_{theirs}")]
    mode = config.get("pooling_mode", flags[0] if len(flags) == 1 else None)
    mode = {"lasttoken": "last"}.get(mode, mode) if isinstance(mode, str) else None
    if mode not in POOLINGS or not config.get("include_prompt", True):
        raise InputError(
            f"{name}: {POOLING_FILE} asks for what cannot be done here; choose [model] pooling: {', '.join(POOLINGS)}"
        )
    return mode


def saved_normalize(name: str) -> bool:
    """Tell whether the model's sentence-transformers files normalise; True if there are none.

    Raises InputError if they name a module, such as Dense, that would be left out here.
    """
    modules = saved_json(name, "modules.json")
    if modules is None:
        return True
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    others = sorted({*kinds} - {*MODULES.values()})
    if others:
        raise InputError(
            f"[model] name = {name!r}: its module {', '.join(others)} (modules.json) would be left out; "
            f"choose a model of {', '.join(MODULES.values())} alone"
        )
    return MODULES["2_Normalize"] in kinds


def saved_max_length(name: str, tower: Tower) -> int:
    """Return the maximum length in tokens that the model's sentence-transformers files name, else at most 512.

    Beyond the model's positions it never is: there sentence-transformers would fail.
    """
    settings = transformer_settings(name)
    named = None if settings is None else settings.get("max_seq_length")
    unsaid = UNSAID_MAX_LENGTH if settings is None else None
    limits = (named or tower.tokenizer.model_max_length, tower.positions, unsaid)
    return min((limit for limit in limits if limit is not None and limit < UNBOUNDED), default=UNSAID_MAX_LENGTH)


def saved_prompts(name: str) -> dict[str, str]:
    """Return the prompts "query" and "passage" that sentence-transformers would use, "" where it would use none."""
    config = saved_json(name, "config_sentence_transformers.json") or {}
    prompts = config.get("prompts") or {}

    def first(*keys: str | None) -> str:
        return next((prompts[key] or "" for key in keys if key in prompts), "")

    fallback = config.get("default_prompt_name")
    return {"query": first("query", fallback), "passage": first("document", "passage", "corpus", fallback)}


def save_tower(tower: Tower, folder: Path, max_length: int, prompts: dict[str, str]) -> None:
    """Write ``tower``, adapters merged, as a folder that sentence-transformers loads with the same vectors."""
    tower.transformer.save_pretrained(folder, state_dict=merged_state(tower.transformer))
    tower.tokenizer.save_pretrained(folder)
    modules = list(MODULES.items())
    if not tower.normalize_output:
        modules.pop()
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"{MODULE_TYPES}.{kind}"}
        for i, (path, kind) in enumerate(modules)
    ]
    modes = {f"pooling_mode_{theirs}": ours == tower.pooling for ours, theirs in SENTENCE_TRANSFORMERS_MODES.items()}
    files: dict[str, Any] = {
        "modules.json": listed,
        "sentence_bert_config.json": {"max_seq_length": max_length, "do_lower_case": lower_cases(tower.tokenizer)},
        "config_sentence_transformers.json": {"prompts": prompts, "similarity_fn_name": "dot"},
        POOLING_FILE: {"word_embedding_dimension": tower.dimensions, **modes},
    }
    if tower.normalize_output:
        files["2_Normalize/config.json"] = {}
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=1) + "\n")
