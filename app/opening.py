"""Opening encoders of artifacts: by which engine, in which precision, and kept while the weights stay the same.

Does not know what they are opened for.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from app.progress import Report
from app.rankers import kept, named_ranker, own_ranker, required_ranker
from app.snapshot import Openers
from indexer.factory import IndexConfig
from retriever.artifacts import Artifact
from retriever.checkpoint import model_folder
from retriever.counting import counted
from retriever.data import Corpus
from retriever.encoder import load_encoder
from retriever.inference import ModelEncoder
from retriever.protocols import TokenEncoder, TokenRanker
from retriever.scoring import TorchRanker

CALIBRATION_PASSAGES = 128
TEXTS = {"query": ("query is", "queries are"), "passage": ("passage is", "passages are")}


def encoder_opener(
    config: IndexConfig, corpus: Corpus | None = None, report: Report | None = None
) -> Callable[[Artifact], ModelEncoder]:
    """Return a function that opens the encoder of a checkpoint or generation; the last one is kept loaded.

    ``corpus`` is what int8 is calibrated on. ``report`` is told once which engine was chosen, and why.
    """
    last: dict[str, ModelEncoder] = {}
    told: list[Any] = []

    def open_encoder(artifact: Artifact) -> ModelEncoder:
        folder = model_folder(artifact)
        model = artifact.facts["weights_sha256"] + (folder / "hone.json").read_text()
        if model not in last:
            last.clear()
            sample = calibration_texts(corpus) if config.precision == "int8" and corpus is not None else []
            last[model] = ModelEncoder(
                load_encoder(folder),
                config.precision,
                engine=config.engine,
                calibration=sample,
                query_precision=config.query_precision,
            )
            choice, of_queries = last[model].choice, last[model].of_queries
            if report is not None and choice not in told:
                told.append(choice)
                queries = {} if of_queries == choice else {"queries": f"{of_queries.engine} {of_queries.precision}"}
                report("engine", engine=choice.engine, precision=choice.precision, reason=choice.reason, **queries)
        return last[model]

    return open_encoder


def warn_of_cuts(encoder: TokenEncoder, warn: Callable[[str], None]) -> None:
    """Say how many texts ``encoder`` has cut, and count anew."""
    for side, count in encoder.cut_texts.items():
        if count:
            length = encoder.max_length(side)
            texts = counted(count, *TEXTS[side])
            warn(f"{texts} longer than {side}_max_length = {length} tokens; the rest is not read")
            encoder.cut_texts[side] = 0


def calibration_texts(corpus: Corpus) -> list[str]:
    """Return at most 128 passages, evenly spread over ``corpus``, so that the same corpus always gives the same."""
    count = min(CALIBRATION_PASSAGES, len(corpus))
    return corpus.texts(np.linspace(0, len(corpus) - 1, count).astype(np.int32))


def openers(ranker: Path | None = None) -> Openers:
    """Return how a generation's models are opened: its own encoder, and its own ranker or else that of ``ranker``.

    ``ranker`` is the folder of a sequence classifier, loaded now. A model that the next generation holds as well is
    kept, as after a rebuild. Raises InputError if ``ranker`` cannot be loaded.
    """
    given = None if ranker is None else named_ranker(str(ranker))
    open_own = kept(own_ranker, "ranker")

    def open_ranker(generation: Artifact) -> TorchRanker | None:
        return open_own(generation) or given

    return Openers(kept(open_generation_encoder, "model", "index_config"), open_ranker)


def open_generation_encoder(generation: Artifact) -> ModelEncoder:
    """Open the encoder of a generation as it was opened to make its vectors, as far as this machine's hardware goes.

    Of an int8 generation the passages that a client sends are computed without int8: its calibration is not kept.
    """
    made = IndexConfig(**generation.facts["index_config"])
    engine, precision = ("torch", "auto") if made.precision == "int8" else (made.engine, made.precision)
    encoder = load_encoder(model_folder(generation))
    return ModelEncoder(encoder, precision, engine=engine, query_precision=made.query_precision)


ENCODER_ALONE = Openers(open_generation_encoder)
"""Opens a generation's encoder and no ranker."""


def reranking_openers(ranker: TokenRanker | None) -> Openers:
    """Return how a generation is opened to be reranked, by ``ranker`` or else its own.

    The opener of the ranker raises InputError where there is neither.
    """
    return Openers(open_generation_encoder, lambda generation: ranker or required_ranker(None, generation))
