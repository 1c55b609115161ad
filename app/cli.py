"""The command line: one command a verb, every error one line and exit code 2.

Does not know how any of it is done.
"""

import errno
import os
import platform
import sys
from importlib import import_module, metadata
from typing import Annotated, NoReturn

import typer

from app.full_disk import is_full
from retriever.errors import HoneError
from retriever.store import code_version

CTRL_C = 130
"""What typer turns a KeyboardInterrupt of a command into."""


COMMANDS = {
    "init": ("run", "Write a commented run.toml for a data set."),
    "train": ("run", "Train, while a second process refreshes the negatives."),
    "refresh": ("run", "Rebuild index and negatives as checkpoints appear."),
    "cycle": ("run", "Train and refresh in turns, in one process."),
    "compare": ("compare", "Train several systems alike and say which differ."),
    "audit": ("audit", "List labels, passages and queries to look at first."),
    "index": ("build", "Index a data set, or build the next generation of a store."),
    "mine": ("build", "Mine hard negatives for the training queries."),
    "relabel": ("relabel", "Have suspect negatives judged and write verdicts."),
    "pin": ("build", "Name an artifact, so that it is never removed."),
    "generations": ("promotion", "List the generations, what each measured and who is served."),
    "promote": ("promotion", "Serve a generation if the gate lets it pass."),
    "rollback": ("promotion", "Serve again what was served before."),
    "diff": ("promotion", "Show which queries one generation answers better."),
    "merge": ("merge", "Average the weights of several models into one."),
    "search": ("ask", "Search the served generation, without a server."),
    "evaluate": ("ask", "Measure a generation, a model or a TREC run."),
    "rerank": ("rerank", "Put the first hits of each query in a ranker's order."),
    "serve": ("serve", "Serve a store over HTTP."),
    "demo": ("demo", "Train on text that is on this machine, then serve it."),
    "dataset": ("data", "Make, convert or join data sets."),
    "export": ("export", "Write the best model, mined negatives or judgements."),
    "keys": ("keys", "Make, list and revoke the keys of a server."),
}
"""The module in app.commands of each command, and what the list of commands says of it."""


def build_app(called: str | None = None) -> typer.Typer:
    """Return the command line. Only the module of the command ``called`` is imported, of None all: torch takes seconds.

    Environment variables that libraries read as they load must be set before.
    """
    app = typer.Typer(
        name="hone",
        help="Train a dense retriever on the hard negatives that its newest self finds, and serve the result.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)
    for name, (place, summary) in COMMANDS.items():
        if called not in (None, name):
            app.command(name, help=summary)(_listed)
            continue
        module = import_module(f"app.commands.{place}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name, short_help=summary)
        else:
            app.command(name, short_help=summary)(getattr(module, name))
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        libraries = [f"{name} {metadata.version(name)}" for name in ("torch", "transformers")]
        print(", ".join([f"hone {code_version()}", *libraries, f"Python {platform.python_version()}"]))
        raise typer.Exit


def _options(
    version: Annotated[  # read by its callback
        bool, typer.Option("--version", help="Print hone's version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Take the options that stand before any command."""


def _listed() -> NoReturn:
    raise AssertionError("this command was not imported")


def main() -> NoReturn:
    """Run the command line; bad input, a full disk and Ctrl-C end with one line and exit code 2."""
    # Trainer and refresher share the cores: threads that wait must sleep, not spin. OpenMP reads this when it loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # bm25s computes by JAX where that is installed, which would fill the GPU that the models need.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    try:
        called = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
        code = build_app(called)(prog_name="hone", standalone_mode=False)
        if code == CTRL_C:
            raise KeyboardInterrupt
    except HoneError as error:
        _fail(str(error).replace("\n", " "))
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted; nothing half-written was published")
    except Exception as error:
        shown = _shown(error)
        if shown is None:
            raise
        _fail(shown)
    sys.exit(code or 0)


def _shown(error: Exception) -> str | None:
    """Return the line for an error that a person can mend, None for a fault of the program."""
    usage = getattr(error, "format_message", None)
    if usage is not None:
        return str(usage())
    place = getattr(error, "filename", None) or "the disk"
    if is_full(error):
        return f"{place}: no space left; nothing half-written was published. Make room and run the same command again"
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{place}: {error.strerror}; nothing half-written was published"
    return None


def _fail(message: str) -> NoReturn:
    print(f"hone: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
