from dataclasses import dataclass, field

import pytest
from pydantic import ValidationError

from app.config_bodies import body_of, config_of
from retriever.errors import InputError


@dataclass(frozen=True)
class Inner:
    name: str = "uniform"
    knob: float | None = None

    def __post_init__(self) -> None:
        if self.name == "bad":
            raise InputError("name = bad: choose another")


@dataclass(frozen=True)
class Outer:
    """How to do it."""

    names: tuple[str, ...] = ("a",)
    depth: int = 7
    path: str | None = None
    inner: Inner = field(default_factory=Inner)


Made = body_of("Made", Outer, ["names", "depth", "inner"], {"name": {"enum": ["uniform", "top"]}})


def test_defaults_are_the_configuration_s() -> None:
    assert config_of(Outer, Made()) == Outer()


def test_what_is_written_comes_through() -> None:
    body = Made.model_validate({"names": ["b", "c"], "depth": 3, "inner": {"name": "top", "knob": 2}})
    assert config_of(Outer, body) == Outer(("b", "c"), 3, None, Inner("top", 2.0))


@pytest.mark.parametrize(
    "body", [{"path": "/etc"}, {"inner": {"knobs": 1}}, {"depth": "3"}, {"names": "b"}, {"inner": {"knob": True}}]
)
def test_what_is_not_asked_for_or_of_another_type_is_refused(body: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Made.model_validate(body)


def test_what_the_configuration_refuses_is_refused() -> None:
    with pytest.raises(InputError, match="choose another"):
        config_of(Outer, Made.model_validate({"inner": {"name": "bad"}}))


def test_the_schema_is_described() -> None:
    schema = Made.model_json_schema()
    assert schema["description"] == "How to do it."
    assert schema["$defs"]["MadeInner"]["properties"]["name"]["enum"] == ["uniform", "top"]
