"""What a request to judge may hold, and what its replies and the list of judgements hold.

Does not know where judgements are stored, nor what follows from them.
"""

from datetime import UTC, datetime
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from app.judgements import StoredJudgement
from app.schemas import MAX_CHARACTERS, MAX_INPUTS, Body

MAX_GRADE = 100
MAX_NAME = 255
MAX_NOTE = 4096
NO_ZERO = r"^[^\x00]+$"
"""PostgreSQL takes no zero byte."""
Id = Annotated[str, StringConstraints(min_length=1, max_length=MAX_CHARACTERS, pattern=NO_ZERO)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=MAX_NAME, pattern=NO_ZERO)]
Note = Annotated[str, StringConstraints(min_length=1, max_length=MAX_NOTE, pattern=NO_ZERO)]
Grade = bool | Annotated[int, Field(ge=0, le=MAX_GRADE)]


class JudgedQuery(Body):
    """A query by its text, its id or both; where the text is said it is the text that counts."""

    id: Id | None = None
    text: Id | None = None

    @model_validator(mode="after")
    def _is_named(self) -> Self:
        if self.id is None and self.text is None:
            raise ValueError("give the query's text, its id, or both")
        return self


class Judgement(Body):
    """One verdict on a pair of query and passage."""

    query: JudgedQuery
    passage: Id = Field(description="Its id in the generation that is served.")
    relevant: Grade = Field(description=f"Whether it answers the query, or a grade from 0 to {MAX_GRADE}; 0 is no.")
    by: Name | None = Field(
        default=None, description="Who says so; where keys are asked for it is the key's name and may be left out."
    )
    note: Note | None = None


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, dict) else value


JudgementList = Annotated[list[Judgement], Field(min_length=1, max_length=MAX_INPUTS)]


class JudgeRequest(Body):
    """Verdicts that are stored together or not at all."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"judgements": [{"query": {"text": "read a file line by line"}, "passage": "p1", "relevant": True}]}
            ]
        }
    )

    judgements: Annotated[
        JudgementList, BeforeValidator(_as_list, json_schema_input_type=Judgement | JudgementList)
    ] = Field(description=f"One, or at most {MAX_INPUTS}.")


class JudgeReply(BaseModel):
    """What became of the verdicts."""

    generation: int = Field(description="The generation whose passages they are about.")
    stored: int = Field(description="Verdicts that are new.")
    unchanged: int = Field(description="Verdicts that were their judge's last word already; nothing was stored.")


class JudgedReply(BaseModel):
    """A stored verdict."""

    id: int
    query: dict[str, str | None] = Field(description="Its id and text, as they were said.")
    passage: str
    grade: int = Field(description="Above 0 is relevant.")
    by: str
    key: str | None = Field(description="Id of the key that it came with.")
    note: str | None
    generation: int
    created: datetime

    @classmethod
    def of(cls, row: StoredJudgement) -> Self:
        """Return the reply for a row of the table."""
        return cls(
            id=row.id,
            query={"id": row.query_id, "text": row.query_text},
            passage=row.passage,
            grade=row.grade,
            by=row.judge,
            key=row.key_id,
            note=row.note,
            generation=row.generation,
            created=datetime.fromtimestamp(row.created, UTC),
        )


class JudgementsReply(BaseModel):
    """Verdicts, newest first; of a judge's verdicts on one pair the newest counts."""

    judgements: list[JudgedReply]
    next: int | None = Field(description="Ask again with `before` at this for those before; null: there are none.")
