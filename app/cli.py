"""The command line: one command a verb, every error one line and exit code 2.

Does not know how any of it is done.
"""

import errno
import sys
from typing import NoReturn

import typer

from app.commands import ask, build, data, demo, export, run
from retriever.errors import HoneError

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
for command in (
    run.init,
    run.train,
    run.refresh,
    run.cycle,
    build.index,
    build.mine,
    build.pin,
    ask.search,
    ask.evaluate,
    ask.serve,
    demo.demo,
):
    app.command()(command)


def main() -> NoReturn:
    """Run the command line; bad input, a full disk and Ctrl-C end with one line and exit code 2."""
    try:
        code = app(standalone_mode=False)
    except HoneError as error:
        _fail(str(error))
    except typer.Abort:
        _fail("interrupted")
    except KeyboardInterrupt:
        _fail("interrupted; nothing half-written was published")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        _fail(f"{error.filename or 'the disk'}: {error.strerror}; nothing half-written was published")
    except Exception as error:
        shown = getattr(error, "format_message", None)
        if shown is None:
            raise
        _fail(shown())
    sys.exit(code or 0)


def _fail(message: str) -> NoReturn:
    print(f"hone: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
