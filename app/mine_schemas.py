"""What a request to mine may hold and what its replies hold; the knobs are those of the miner's own configurations.

Does not know how negatives are found.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.config_bodies import body_of, config_of
from app.schemas import MAX_HITS, MAX_INPUTS, MAX_TOP_K, Body, PassageId, Text, limit
from miner.filters import FilterConfig
from miner.mining import MiningConfig
from miner.samplers import SAMPLERS
from miner.sources import GENERATION, SOURCES, generation_of

MAX_JOB_QUERIES = 100_000
MAX_JOB_HITS = 2_000_000
JobFormat = Literal["hone", "sentence-transformers", "flagembedding", "tevatron"]

OF_A_RUN = "momentum"
"""The source that draws from a run's own sets, which a request has not."""
ASKED_SOURCES = [name for name in SOURCES if name != OF_A_RUN]

DESCRIBED: dict[str, dict[str, Any]] = {
    "name": {"enum": [*SAMPLERS]},
    "sources": {
        "items": {"anyOf": [{"enum": ASKED_SOURCES}, {"type": "string", "pattern": f"^{GENERATION}"}]},
        "description": "generation:NAME is the one that a pointer names, generation:-n the n-th before the served one; "
        "a job alone opens them.",
    },
    "quotas": {"description": "Negatives of each source, in the order of drawing; they add up to num_negatives."},
    "fill": {"description": "The source that gives what another is short of its quota; null: fewer negatives."},
    "depth": {"description": "Candidates of each source; at most the whole corpus.", "maximum": MAX_TOP_K},
    "range_min": {"description": "The first rank that may be a negative, from 0."},
    "range_max": {"description": "The first rank that may no longer be one."},
    "absolute_margin": {"description": "m: refuse scores above s⁺ − m, s⁺ the positives' lowest score; 0 is off."},
    "relative_margin": {"description": "m: refuse scores above s⁺ − m·|s⁺|; 0 is off."},
    "max_score": {"description": "Refuse scores above it."},
}

if TYPE_CHECKING:
    Knobs = Body
else:
    # All that the miner knows, except for files: no path comes from a request.
    Knobs = body_of(
        "MineKnobs",
        MiningConfig,
        ["sources", "depth", "sampler", "quotas", "fill", *(one.name for one in fields(FilterConfig))],
        DESCRIBED,
    )


class MineQuery(Body):
    """A query to mine negatives for."""

    id: str = Field(min_length=1, description="Names the query in the reply and in the draw: keep it to repeat a draw.")
    text: Text
    positives: list[PassageId] = Field(
        max_length=MAX_TOP_K, description="Relevant passages: neither they nor copies of their texts come back."
    )


class MineRequest(Knobs):
    """Queries with their positives, and which of their candidates may be negatives."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "queries": [{"id": "q1", "text": "read a file line by line", "positives": []}],
                    "num_negatives": 3,
                    "depth": 50,
                    "relative_margin": 0.05,
                }
            ]
        }
    )

    queries: list[MineQuery] = Field(
        min_length=1, max_length=MAX_JOB_QUERIES, description=f"At most {MAX_INPUTS}, as a job {MAX_JOB_QUERIES}."
    )
    num_negatives: int = Field(
        default=8, ge=1, le=MAX_TOP_K, description="Negatives for each query; fewer if fewer remain."
    )
    seed: int = Field(default=13, description="The same seed, generation and judgements give the same negatives.")
    stream: bool = Field(
        default=False,
        description="Send a JSON line for each query as soon as it is mined; the header names the generation.",
    )
    job: JobFormat | None = Field(
        default=None,
        description="Answer 202 at once: a job mines, and GET /v1/jobs/{job_id}/result gives its file of JSON lines in "
        "this form; hone's own is that of stream.",
    )

    def config(self) -> MiningConfig:
        """Return the miner's configuration. Raises InputError for values that it does not allow."""
        return config_of(MiningConfig, self)

    @model_validator(mode="after")
    def _is_answerable(self) -> Self:
        try:
            config = self.config()
            config.check_drawn(self.num_negatives)
        except ValueError as error:
            raise ValueError(str(error).replace("[negatives] ", "")) from error
        if config.depth > MAX_TOP_K:
            raise ValueError(f"depth = {config.depth}: at most {MAX_TOP_K}")
        self._check_sources(config.sources)
        if self.job is not None and self.stream:
            raise ValueError("job and stream: choose one of the two")
        if self.num_negatives > config.depth * len(config.sources):
            raise ValueError(f"num_negatives = {self.num_negatives} is larger than depth = {config.depth}")
        if self.job is None:
            limit("queries", len(self.queries), MAX_INPUTS)
        most = MAX_HITS if self.job is None else MAX_JOB_HITS
        limit("queries × num_negatives", len(self.queries) * self.num_negatives, most)
        return self

    def _check_sources(self, sources: Sequence[str]) -> None:
        if OF_A_RUN in sources:
            raise ValueError(f"sources: {OF_A_RUN} draws from a run's sets; choose from {', '.join(ASKED_SOURCES)}")
        others = [name for name in sources if generation_of(name) is not None]
        if others and self.job is None:
            raise ValueError(f'sources: {others[0]}: a job alone opens other generations; add "job": "hone" or another')


class MinedNegative(BaseModel):
    """A candidate that was drawn as a negative."""

    id: str
    score: float = Field(description="Similarity to the query.")
    rank: int = Field(description="Its rank among the candidates, from 1.")
    source: str = Field(description="The source that found it.")
    verdict: str = Field(description="Why it may be a negative.")


class Mined(BaseModel):
    """The negatives of one query in the order in which they were drawn."""

    id: str
    negatives: list[MinedNegative]


class MineReply(BaseModel):
    """Negatives for each query, in the order of the queries."""

    generation: int
    cut_queries: int = Field(description="Queries longer than the model reads; the rest of them was not read.")
    results: list[Mined]
