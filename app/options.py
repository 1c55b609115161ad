"""The command-line options that several commands share.

Does not know what the commands do with them.
"""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from app.settings import Settings
from retriever.errors import InputError
from retriever.store import Store

StoreOption = Annotated[
    Path | None,
    typer.Option("--store", help="Folder of the store. Default: $HONE_STORE, else ./store.", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
SkipMissing = Annotated[
    bool,
    typer.Option(
        "--skip-missing", help="Count and skip passages without a text, and judgements of unknown passages or queries."
    ),
]
RankerOption = Annotated[
    str | None, typer.Option("--ranker", help="Folder or hub id of a ranker. Default: the generation's own.")
]
GenerationOption = Annotated[
    str | None, typer.Option("--generation", help="Number or name of the generation. Default: SERVED.")
]
ConfigArgument = Annotated[Path, typer.Argument(help="The run.toml that `hone init` wrote.", show_default=False)]


class QueryPrecision(StrEnum):
    """Number formats in which queries are computed; "auto" is that of passages, but never int8."""

    AUTO = "auto"
    INT8 = "int8"


class Precision(StrEnum):
    """Number formats in which an encoder computes."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    INT8 = "int8"


class EngineName(StrEnum):
    """Libraries that compute an encoder."""

    AUTO = "auto"
    TORCH = "torch"
    OPENVINO = "openvino"


def store_path(given: Path | None) -> Path:
    """Return the store's folder: the flag's, else the environment's, else ./store."""
    return given or Settings().store


def generation_number(store: Store, generation: str | None) -> int | None:
    """Return the number that ``generation`` gives or names, None for None. Raises InputError for an unknown name."""
    if generation is None or generation.isdigit():
        return None if generation is None else int(generation)
    number = store.generations.pointed(generation)
    if number is None:
        raise InputError(f"no generation is named {generation}; there are {', '.join(store.generations.pointers())}")
    return number


def check_writable(out: Path) -> None:
    """Raise InputError, before anything is computed, for a path that could not be written in the end."""
    if out.is_dir() or not out.parent.is_dir():
        raise InputError(f"{out}: cannot be written; name a file in a folder that exists")


def warn(message: str) -> None:
    """Say what was skipped or replaced, on standard error."""
    print(f"hone: warning: {message}", file=sys.stderr)


def is_given(context: typer.Context, name: str) -> bool:
    """Tell whether whoever called wrote the parameter ``name``, be it with the value that it has anyway."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object on one line."""
    print(json.dumps(value, ensure_ascii=False), flush=True)
