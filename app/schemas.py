"""What requests may hold and what replies hold, with limits, units and examples for /docs.

Does not know how a reply is found.
"""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    FiniteFloat,
    StringConstraints,
    Tag,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from app.hidden_paths import hide_paths
from app.jobs import Job

MAX_INPUTS = 2048
MAX_CHARACTERS = 65_536
MAX_SPACE = 256
MAX_TOP_K = 1000
MAX_HITS = 200_000
MAX_IDS = 10_000
MAX_DIMENSIONS = 65_536
MAX_PAIRS = 10_000
MAX_CONDITIONS = 32
MAX_VALUES = 1000

Text = Annotated[str, StringConstraints(min_length=1, max_length=MAX_CHARACTERS)]
PassageId = Annotated[str, StringConstraints(min_length=1, max_length=MAX_CHARACTERS)]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


TextList = Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS)]
Texts = Annotated[TextList, BeforeValidator(_as_list, json_schema_input_type=Text | TextList)]
"""One text or a list of them."""

Vector = Annotated[list[FiniteFloat], Field(min_length=1, max_length=MAX_DIMENSIONS)]
Vectors = Annotated[list[Vector], Field(min_length=1, max_length=MAX_INPUTS)]


class Body(BaseModel):
    """A request's body: an unknown field is an error, and a number in quotes is not a number."""

    model_config = ConfigDict(extra="forbid", strict=True)


FieldName = Annotated[str, StringConstraints(min_length=1, max_length=256)]


def _said_once(expected: str) -> WrapValidator:
    """Return what makes one message of those that each type of a union has."""

    def check(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        try:
            return validate(value)
        except ValidationError as error:
            if isinstance(value, str):
                raise PydanticCustomError("string_too_long", f"give at most {MAX_CHARACTERS} characters") from error
            raise PydanticCustomError("filter_value", f"give {expected}") from error

    return WrapValidator(check)


Scalar = Annotated[
    Annotated[str, StringConstraints(max_length=MAX_CHARACTERS)] | bool | int | FiniteFloat,
    _said_once("a string, a finite number, true, false or null"),
]
Bound = Annotated[
    Annotated[str, StringConstraints(max_length=MAX_CHARACTERS)] | int | FiniteFloat,
    _said_once("a string or a finite number"),
]


class Range(Body):
    """Bounds of the same type, number or string, all of which must hold."""

    gt: Bound | None = None
    gte: Bound | None = None
    lt: Bound | None = None
    lte: Bound | None = None

    @model_validator(mode="after")
    def _is_bounded(self) -> Self:
        bounds = self.bounds()
        if not bounds:
            raise ValueError("give at least one of gt, gte, lt, lte")
        if len({isinstance(bound, str) for bound in bounds.values()}) > 1:
            raise ValueError("no value can meet a number and a string as bounds; give them one type")
        return self

    def bounds(self) -> dict[str, str | int | float]:
        """Return the bounds that were given."""
        return {name: bound for name in type(self).model_fields if (bound := getattr(self, name)) is not None}


def _form(condition: Any) -> str:
    if isinstance(condition, dict | Range):
        return "bounds"
    return "values" if isinstance(condition, list) else "value"


Condition = Annotated[
    Annotated[Scalar | None, Tag("value")]
    | Annotated[list[Scalar | None], Field(min_length=1, max_length=MAX_VALUES), Tag("values")]
    | Annotated[Range, Tag("bounds")],
    Discriminator(_form),
]


Dimensions = Annotated[
    int | None,
    Field(
        ge=1,
        le=MAX_DIMENSIONS,
        description="Give the first so many numbers of each vector, scaled to the whole's length; such vectors cannot "
        "be searched with here.",
    ),
]


class EncodeRequest(Body):
    """Texts to encode with one of the two towers."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"inputs": ["read a file line by line"]}]})

    inputs: Texts = Field(description=f"One text or at most {MAX_INPUTS}, each of at most {MAX_CHARACTERS} characters.")
    input_type: Literal["query", "passage"] = Field(default="query", description="The tower to encode with.")
    encoding_format: Literal["float", "base64"] = Field(
        default="float",
        description="Numbers, or one base64 string a text that holds its float32 numbers, little-endian.",
    )
    dimensions: Dimensions = None


class EncodeReply(BaseModel):
    """One embedding for each input, in their order."""

    generation: int
    space: str = Field(description="Fingerprint of what makes vectors comparable; /v1/search asks for it.")
    dimensions: int
    cut_inputs: int = Field(description="Inputs longer than the model reads; the rest of them was not read.")
    embeddings: list[list[float]] | list[str]


class SearchRequest(Body):
    """Queries as texts, or as vectors from /v1/encode, and what to answer."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"queries": ["read a file line by line"], "top_k": 3, "with_text": True}]}
    )

    queries: Texts | None = Field(
        default=None, description=f"One text or at most {MAX_INPUTS}; either these or vectors."
    )
    vectors: Vectors | None = Field(default=None, description="Query vectors; needs space.")
    space: str | None = Field(
        default=None,
        max_length=MAX_SPACE,
        description="The space of the vectors; 409 if the served generation has another.",
    )
    top_k: int = Field(
        default=10, ge=1, le=MAX_TOP_K, description="Hits for each query; all passages if there are fewer."
    )
    exclude_ids: list[PassageId] = Field(
        default=[],
        max_length=MAX_IDS,
        description="Passages that no query gets; ids that the corpus lacks change nothing.",
    )
    filter: dict[FieldName, Condition] = Field(
        default={},
        max_length=MAX_CONDITIONS,
        description="Conditions on fields of passages (their metadata), all of which must hold: a value, a list of "
        "values of which one must hold, or bounds. A field that holds a list meets one if one of its values does.",
    )
    mode: Literal["dense", "lexical", "hybrid"] = Field(
        default="dense", description="By vectors, by shared words (BM25), or by both; the last two need queries."
    )
    fusion: Literal["rrf", "weights"] = Field(
        default="rrf",
        description="How hybrid adds up: reciprocal ranks, or scores that are normalised to 0 … 1 for each query.",
    )
    dense_weight: float = Field(
        default=0.5, ge=0, le=1, description="Share of the vectors in hybrid; the rest is that of the words."
    )
    exact: bool = Field(default=False, description="Compare with every passage instead of asking the index.")
    rerank: bool = Field(default=False, description="Let the ranker order the best hits; 409 where none is loaded.")
    rerank_depth: int = Field(
        default=50, ge=1, le=MAX_TOP_K, description="Hits that the ranker reads for each query, at least top_k."
    )
    with_text: bool = Field(default=False, description="Give each hit its title and text.")

    @model_validator(mode="after")
    def _is_answerable(self) -> Self:
        if (self.queries is None) == (self.vectors is None):
            raise ValueError("give either queries or vectors")
        if self.vectors is not None and self.space is None:
            raise ValueError("vectors need their space, as /v1/encode gave it")
        if self.queries is None and (self.mode != "dense" or self.rerank):
            raise ValueError("lexical and hybrid search and rerank read the queries' texts: give queries, not vectors")
        count = len(self.queries or self.vectors or ())
        limit("queries × top_k", count * self.top_k, MAX_HITS)
        if self.rerank:
            limit("queries × rerank_depth", count * max(self.top_k, self.rerank_depth), MAX_PAIRS)
        return self


def limit(what: str, count: int, most: int) -> None:
    """Raise what becomes 413 if ``count`` of ``what`` is above ``most``."""
    if count > most:
        raise PydanticCustomError("too_long", f"{what} is {count}, the limit is {most} a request")


class Hit(BaseModel):
    """A passage found."""

    id: str
    score: float = Field(description="Similarity, or the score of BM25, of their fusion or of the ranker.")
    rank: int = Field(description="From 1.")
    text: str | None = Field(default=None, description="Title and text; only where with_text is true.")


class SearchReply(BaseModel):
    """The hits of each query, best first, in the order of the queries."""

    generation: int
    space: str
    cut_queries: int = Field(description="Queries longer than the model reads; the rest of them was not read.")
    cut_pairs: int = Field(description="Pairs longer than the ranker reads; 0 without rerank.")
    results: list[list[Hit]]


class JobReply(BaseModel):
    """A job as it stands now."""

    id: str
    kind: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    phase: str = Field(description="What it is doing.")
    done: int = Field(description="Units of this phase that are done.")
    total: int = Field(description="Units of this phase in all.")
    rate: float | None = Field(description="Units a second.")
    eta_seconds: float | None = Field(description="Seconds until the end of this phase.")
    result: dict[str, Any] | None = Field(description="What it made, once it is done.")
    error: str | None = Field(description="Why it failed.")
    cancel_requested: bool
    created: datetime
    started: datetime | None
    updated: datetime

    @classmethod
    def of(cls, job: Job) -> Self:
        """Return the reply for a row of the table."""
        times = {name: getattr(job, name) for name in ("created", "started", "updated")}
        dated = {name: None if t is None else datetime.fromtimestamp(t, UTC) for name, t in times.items()}
        plain = {name: getattr(job, name) for name in cls.model_fields if name not in dated}
        error = None if job.error is None else hide_paths(job.error)
        return cls.model_validate({**plain, **dated, "error": error})


class JobsReply(BaseModel):
    """Jobs, newest first."""

    jobs: list[JobReply]
    total: int = Field(description="How many there are, shown or not.")


class CancelReply(BaseModel):
    """What became of the wish to cancel."""

    outcome: Literal["CANCELLED", "CANCELLING", "NO_OP"] = Field(
        description="It is cancelled; it stops at its next step; or nothing ran that could stop."
    )
    job: JobReply


class ReadyReply(BaseModel):
    """The server answers."""

    status: Literal["ready"]
    generation: int


class LiveReply(BaseModel):
    """The process is alive."""

    status: Literal["live"]
