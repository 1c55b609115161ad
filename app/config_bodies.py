"""A frozen configuration as a part of a request's body, so that a knob that a module gains is a field of HTTP at once.

Does not know which configurations there are.
"""

from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import GenericAlias
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

from pydantic import BaseModel, create_model
from pydantic import Field as BodyField

from app.schemas import Body

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")


def body_of(
    name: str, kind: "type[DataclassInstance]", only: Collection[str], schemas: Mapping[str, Mapping[str, Any]]
) -> type[Body]:
    """Return a body called ``name`` with the fields ``only`` of the dataclass ``kind``, their types and defaults.

    ``schemas`` adds to the JSON schema of fields by their name, in nested configurations too. A tuple is a list here.
    """
    hints = get_type_hints(kind)
    made: dict[str, Any] = {}
    for field in fields(kind):
        if field.name not in only:
            continue
        extra = dict(schemas.get(field.name, {}))
        hint = hints[field.name]
        if isinstance(hint, type) and is_dataclass(hint):
            inner = body_of(f"{name}{hint.__name__}", hint, [one.name for one in fields(hint)], schemas)
            made[field.name] = (inner, BodyField(default_factory=inner, json_schema_extra=extra))
        elif get_origin(hint) is tuple:
            made[field.name] = (
                GenericAlias(list, get_args(hint)[:1]),
                BodyField(default=[*_default(field)], json_schema_extra=extra),
            )
        else:
            made[field.name] = (hint, BodyField(default=_default(field), json_schema_extra=extra))
    model: type[Body] = create_model(name, __base__=Body, __doc__=kind.__doc__, **made)
    return model


def _default(field: Any) -> Any:
    return field.default_factory() if field.default is MISSING else field.default


def config_of(kind: type[Config], body: BaseModel) -> Config:
    """Return the ``kind`` of configuration that ``body``, which may have other fields too, describes.

    Raises what ``kind`` raises for values that it does not allow.
    """
    hints, values = get_type_hints(kind), {}
    for field in fields(kind):
        if field.name in type(body).model_fields:
            value = getattr(body, field.name)
            if isinstance(value, BaseModel):
                value = config_of(hints[field.name], value)
            values[field.name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)
