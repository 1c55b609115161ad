"""hone keys: make, list and revoke the keys of a server.

Does not know what a key lets in.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from app.keys import SCOPES, Key, Keys
from app.options import JsonOption, StoreOption, print_json, store_path
from app.settings import database_url
from retriever.errors import InputError
from retriever.store import Store

app = typer.Typer(help="Make, list and revoke the keys of a server.", no_args_is_help=True)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is, for people.", show_default=False)],
    scope: Annotated[list[str], typer.Option("--scope", help=f"What it may do: {', '.join(SCOPES)}. Repeatable.")],
    per_minute: Annotated[int | None, typer.Option("--per-minute", help="Requests a minute; none: no limit.")] = None,
    tokens: Annotated[
        int | None,
        typer.Option("--tokens-per-minute", help="Tokens that are computed for it a minute; none: no limit."),
    ] = None,
    store: StoreOption = None,
    json_output: JsonOption = False,
) -> None:
    """Make a key and print it once: only its hash is kept."""
    with _keys(store) as keys:
        secret, key = keys.create(name, scope, per_minute, tokens)
    if json_output:
        print_json({"key": secret, **_shown(key)})
        return
    print(secret)


@app.command("list")
def list_keys(store: StoreOption = None, json_output: JsonOption = False) -> None:
    """List keys, revoked ones too, without their secrets."""
    with _keys(store) as keys:
        shown = [_shown(key) for key in keys.all()]
    if json_output:
        print_json({"keys": shown})
        return
    for key in shown:
        state = "revoked" if key["revoked"] else "valid"
        limits = {"": key["per_minute"], "tokens ": key["tokens_per_minute"]}
        told = "".join(f", {limit} {what}a minute" for what, limit in limits.items() if limit)
        print(f"{key['id']}  {state:7}  {key['name']}: {', '.join(key['scopes'])}{told}")


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As `hone keys list` shows it.", show_default=False)],
    store: StoreOption = None,
) -> None:
    """Let a key in no more; servers feel it within five seconds."""
    with _keys(store) as keys:
        if not keys.revoke(key_id):
            raise InputError(f"no valid key has the id {key_id!r}; hone keys list shows them")
    print(f"{key_id} is revoked")


@contextmanager
def _keys(store: Path | None) -> Iterator[Keys]:
    root = Store(store_path(store)).root
    keys = Keys(database_url(root))
    try:
        yield keys
    finally:
        keys.close()


def _shown(key: Key) -> dict[str, Any]:
    dates = {"created": key.created, "revoked": key.revoked}
    dated = {name: t and datetime.fromtimestamp(t, UTC).isoformat(timespec="seconds") for name, t in dates.items()}
    limits = {"per_minute": key.per_minute, "tokens_per_minute": key.tokens_per_minute}
    return {"id": key.id, "name": key.name, "scopes": key.scopes, **limits, **dated}
