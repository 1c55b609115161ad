"""Tables as TOML, which the standard library only reads.

Does not know what the keys mean.
"""

import json
from collections.abc import Mapping
from typing import Any

DELETE = "\x7f"


def toml_text(table: Mapping[str, Any]) -> str:
    """Return ``table`` as TOML, its inner tables as [headers] and theirs inline: `tomllib` reads the same table again.

    Raises ValueError for what TOML has no word for, such as None.
    """
    plain = [f"{_key(key)} = {_value(value)}" for key, value in table.items() if not isinstance(value, Mapping)]
    for key, inner in table.items():
        if isinstance(inner, Mapping):
            plain += ["", f"[{_key(key)}]", *(f"{_key(name)} = {_value(value)}" for name, value in inner.items())]
    return "\n".join(plain).lstrip() + "\n"


def _key(key: str) -> str:
    return key if key.replace("-", "").replace("_", "").isalnum() and key.isascii() else _string(key)


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace(DELETE, "\\u007f")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{_key(key)} = {_value(inner)}' for key, inner in value.items())} }}"
    raise ValueError(f"{value!r}: TOML has no word for a {type(value).__name__}")
