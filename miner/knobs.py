"""Choices by name in a run's TOML: each name has knobs of its own, and a knob of another name is refused.

Does not know what is chosen.
"""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from retriever.errors import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def knobs(key: str, config: "DataclassInstance", choices: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the knobs of the choice ``config.name``: those written, and the defaults of the others.

    ``config`` is a frozen dataclass of ``name`` and knobs that are None where they were not written, ``choices`` the
    default of each knob of each name, ``key`` what stands before a field in TOML. Raises InputError for an unknown
    name, a knob that the named choice does not use, and a number that is not finite.
    """
    written = {one.name: value for one in fields(config) if (value := getattr(config, one.name)) is not None}
    name = written.pop("name")
    if name not in choices:
        raise InputError(f"{key}name = {name!r}: choose one of {', '.join(choices)}")
    for knob, value in written.items():
        if knob not in choices[name]:
            users = [other for other, its in choices.items() if knob in its]
            raise InputError(
                f"{key}{knob} = {value!r}: {name} does not use it, {', '.join(users)} would; leave it out, "
                f"or change {key}name"
            )
        if not math.isfinite(value):
            raise InputError(f"{key}{knob} = {value}: write a finite number")
    return {**choices[name], **written}
