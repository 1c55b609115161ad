"""The command line: one command a verb, every error one line and exit code 2.

Does not know how any of it is done.
"""

import errno
import os
import sys
from typing import NoReturn

import typer

from app.full_disk import is_full
from retriever.errors import HoneError

CTRL_C = 130
"""What typer turns a KeyboardInterrupt of a command into."""


def build_app() -> typer.Typer:
    """Return the command line with all its commands; imports what they need, so not before ``main``."""
    from app.commands import (
        ask,
        audit,
        build,
        compare,
        data,
        demo,
        export,
        keys,
        merge,
        promotion,
        relabel,
        rerank,
        run,
    )

    app = typer.Typer(
        name="hone",
        help="Train a dense retriever on the hard negatives that its newest self finds, and serve the result.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.add_typer(data.app, name="dataset")
    app.add_typer(export.app, name="export")
    app.add_typer(keys.app, name="keys")
    for command in (
        run.init,
        run.train,
        run.refresh,
        run.cycle,
        compare.compare,
        audit.audit,
        build.index,
        build.mine,
        relabel.relabel,
        build.pin,
        promotion.generations,
        promotion.promote,
        promotion.rollback,
        promotion.diff,
        merge.merge,
        ask.search,
        ask.evaluate,
        rerank.rerank,
        ask.serve,
        demo.demo,
    ):
        app.command()(command)
    return app


def main() -> NoReturn:
    """Run the command line; bad input, a full disk and Ctrl-C end with one line and exit code 2."""
    # Trainer and refresher share the cores: threads that wait must sleep, not spin. OpenMP reads this when it loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # bm25s computes by JAX where that is installed, which would fill the GPU that the models need.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    try:
        code = build_app()(prog_name="hone", standalone_mode=False)
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
