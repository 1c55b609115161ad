"""Encoding behind the numpy protocol: sorted token-budget batches, spread over streams of one thread each.

Does not know training, nor what the vectors are for.
"""

import sys
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.device import pick_device
from retriever.durable import sha256_json
from retriever.encoder import DualEncoder
from retriever.engines.choice import Choice, Engine, choose, choose_for_queries, open_engine
from retriever.engines.fast_forward import names_of
from retriever.engines.onnx_engine import bits
from retriever.protocols import Fingerprints, FloatArray, Progress, Side, silent
from retriever.streams import most_streams, streams
from retriever.token_batches import mixed, pad, shared_budget, token_batches
from retriever.tokens import TokenIds, Tokens, joined
from retriever.tower import Tower

TOKEN_BUDGETS = {"cpu": 2048, "cuda": 65536, "mps": 16384}
"""Tokens of one forward pass. On a CPU larger batches leave its caches and are slower."""
ENCODED_TOKENS = {**TOKEN_BUDGETS, "cpu": 1024}
"""The same where texts are encoded: on a CPU half as many take less memory and no more time."""
CALIBRATION_BATCH = 8
PIECES = {"cpu": sys.maxsize, "cuda": 512, "mps": 512}
"""Texts that a thread takes from words to vectors. A GPU computes for one meanwhile; a CPU sorts all by length."""
TOKENIZED = 512
"""Texts that the tokenizer is given at a time: what it returns is a hundred times as large as the ids."""


class ModelEncoder:
    """Implements retriever.protocols.TokenEncoder and TokenKeeper over a DualEncoder.

    ``cut_texts`` counts the texts of each side that were longer than the model reads.
    ``choice`` tells which engine computes passages, and why, ``of_queries`` which queries. These are computed in int8
    only where that is asked for: there are few of them, and each is compared with every passage.
    """

    def __init__(
        self,
        model: DualEncoder,
        precision: str = "fp32",
        device: str = "auto",
        engine: str = "torch",
        calibration: Sequence[str] = (),
        query_precision: str = "auto",
    ) -> None:
        """Take precisions and engine as ``choose`` and ``choose_for_queries`` do, and passages to calibrate int8 on.

        Raises InputError like these, and for an engine that is not installed or cannot take the model.
        """
        self._device = pick_device(device)
        self._model = model
        known = names_of(model.passage.transformer) is not None
        self.choice = choose(engine, precision, self._device, known)
        self.of_queries = of_queries = choose_for_queries(query_precision, self.choice, self._device, known)
        if self.choice.precision != "int8":
            calibration = ()
        self.computed_by = f"{self.choice.engine} {self.choice.precision}"
        sample = f" calibrated on {sha256_json(list(calibration))}" if calibration else ""
        recipe = f", products of {bits()} bits" if of_queries.engine == "onnxruntime" else ""
        self.fingerprints: Fingerprints = model.fingerprints(
            query=f"{of_queries.engine} {of_queries.precision}{recipe}", passage=self.computed_by + sample
        )
        self.streams = most_streams(self._device)
        self._engines: dict[Side, Engine] = {"passage": self._open(model.passage, self.choice, calibration)}
        shared = model.query is model.passage and of_queries == self.choice
        self._engines["query"] = self._engines["passage"] if shared else self._open(model.query, of_queries, ())
        self.cut_texts: dict[Side, int] = {"query": 0, "passage": 0}
        self._tokenizing = Lock()

    def _open(self, tower: Tower, choice: Choice, calibration: Sequence[str]) -> Engine:
        token_ids, _ = self._model.tokenize("passage", calibration)
        token_ids.sort(key=len)
        starts = range(0, len(token_ids), CALIBRATION_BATCH)
        batches = [pad(token_ids[start : start + CALIBRATION_BATCH], tower.pad_id) for start in starts]
        return open_engine(tower, choice, self._device, self.streams, batches)

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        return self._model.dimensions

    def max_length(self, side: Side) -> int:
        """Return how many tokens of a text of ``side`` are read, prompt included."""
        length: int = getattr(self._model.config, f"{side}_max_length")
        return length

    @property
    def pooling(self) -> str:
        """How token vectors become one."""
        return self._model.passage.pooling

    @property
    def alike(self) -> bool:
        """Whether both sides have the same weights and prompt."""
        config = self._model.config
        return self._model.query is self._model.passage and config.query_prompt == config.passage_prompt

    def encode_queries(self, texts: Sequence[str], progress: Progress = silent) -> FloatArray:
        """Return float32 [len(texts), dimensions] from the query tower."""
        return self.encode_keeping("query", texts, progress)[0]

    def encode_passages(self, texts: Sequence[str], progress: Progress = silent) -> FloatArray:
        """Return float32 [len(texts), dimensions] from the passage tower."""
        return self.encode_keeping("passage", texts, progress)[0]

    def encode_keeping(
        self, side: Side, texts: Sequence[str], progress: Progress = silent
    ) -> tuple[FloatArray, Tokens]:
        """Return float32 [len(texts), dimensions], and the token ids of ``texts``."""
        kept: dict[int, Tokens] = {}

        def tokens(piece: slice) -> list[NDArray[Any]]:
            kept[piece.start] = self._tokens(side, texts[piece])
            return kept[piece.start].split()

        vectors = self._encode(side, len(texts), tokens, progress)
        return vectors, joined([kept[start] for start in sorted(kept)])

    def encode_kept(self, side: Side, tokens: Tokens, progress: Progress = silent) -> FloatArray:
        """Return float32 [len(tokens), dimensions]; texts that were cut count as if they were tokenized here."""
        token_ids = tokens.split()
        vectors = self._encode(side, len(tokens), token_ids.__getitem__, progress)
        self.cut_texts[side] += int(tokens.cut.sum())
        return vectors

    def _encode(
        self, side: Side, count: int, tokens: Callable[[slice], Sequence[TokenIds]], progress: Progress
    ) -> FloatArray:
        """Encode ``count`` texts; ``tokens`` gives the ids of a slice of them, to several threads."""
        size = PIECES[self._device.type]
        if count <= size:
            return self.encode_tokens(side, tokens(slice(0, count)), progress)
        vectors = np.empty((count, self.dimensions), np.float32)

        def encode(piece: slice) -> int:
            vectors[piece] = self.encode_tokens(side, token_ids := tokens(piece))
            return len(token_ids)

        pieces = [slice(start, start + size) for start in range(0, count, size)]
        self._in_streams(encode, pieces, progress, count)
        return vectors

    def _tokens(self, side: Side, texts: Sequence[str]) -> Tokens:
        """Return the token ids of each text, and which were cut; these are counted. One thread at a time."""
        starts = range(0, len(texts), TOKENIZED) or [0]
        with self._tokenizing:  # the tokenizer has threads of its own, and refuses those of others
            made = joined([Tokens.of(*self._model.tokenize(side, texts[at : at + TOKENIZED])) for at in starts])
            self.cut_texts[side] += int(made.cut.sum())
        return made

    def tokenize(self, side: Side, texts: Sequence[str]) -> tuple[list[list[int]], int]:
        """Return the token ids of each text, cut to the maximum length, and how many texts were cut."""
        token_ids, cut = self._model.tokenize(side, texts)
        return token_ids, sum(cut)

    def encode_tokens(self, side: Side, token_ids: Sequence[TokenIds], progress: Progress = silent) -> FloatArray:
        """Return float32 [len(token_ids), dimensions]."""
        vectors = np.empty((len(token_ids), self.dimensions), np.float32)
        if not len(token_ids):
            return vectors
        engine, pad_id = self._engines[side], getattr(self._model, side).pad_id
        lengths = np.array([len(ids) for ids in token_ids])
        batches = mixed(token_batches(lengths, self._budget(engine, int(lengths.sum()))))

        def encode(batch: NDArray[np.int64]) -> int:
            vectors[batch] = engine.vectors(*pad([token_ids[i] for i in batch], pad_id), alone=len(batches) == 1)
            return len(batch)

        self._in_streams(encode, batches, progress, len(token_ids))
        return vectors

    def _budget(self, engine: Engine, tokens: int) -> int:
        most = ENCODED_TOKENS[self._device.type]
        if self._device.type != "cpu" or tokens <= engine.least_tokens:
            return most  # an accelerator, too, takes a few texts at once sooner than one after the other
        return shared_budget(tokens, self.streams, engine.least_tokens, most)

    def _in_streams(self, encode: Callable[[Any], int], parts: Sequence[Any], progress: Progress, total: int) -> None:
        """Have all ``parts`` encoded; ``encode`` returns how many texts a part held."""
        done = 0
        with streams(min(self.streams, len(parts)), self._device) as run:
            for finished in run(encode, parts):
                done += finished
                progress(done, total)
