"""Tells a full disk or database from other errors, however a library says it.

Does not know what was to be written.
"""

import errno
import os
import re
import sqlite3
import tempfile
from pathlib import Path

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
DISK_FULL_STATE = "53100"
"""PostgreSQL's SQLSTATE `disk_full`."""
PAGE_BYTES = 4096
"""What SQLite writes at a time."""
DISK_IS_FULL = re.compile(r"No space left on device|Disk quota exceeded|disk is full|\d+ requested and \d+ written")
"""What the system, SQLite and numpy say; libraries wrap it in exceptions of their own that keep no errno."""


def is_full(error: BaseException) -> bool:
    """Tell whether ``error`` means that a disk, a quota or a database had no room for what was to be written.

    Of SQLAlchemy's errors the driver's own is asked: their text holds the values of the statement, which may say
    anything. What caused it is asked, too.
    """
    said = getattr(error, "orig", None) or error
    return any(_says_full(one) for one in (said, said.__cause__) if one is not None)


def _says_full(error: BaseException) -> bool:
    numbers = getattr(error, "errno", None), getattr(error, "sqlstate", None)
    return numbers[0] in NO_ROOM or numbers[1] == DISK_FULL_STATE or DISK_IS_FULL.search(str(error)) is not None


def explain(error: BaseException, folder: Path) -> None:
    """Give ``error`` of a SQLite database in ``folder`` its cause, where it is that nothing can be written there.

    Of a disk quota SQLite says what it says of a broken disk, and keeps no number of the system's error. So the disk is
    asked: a page is written beside the database, and is gone at once.
    """
    if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_IOERR:
        return
    try:
        with tempfile.TemporaryFile(dir=folder) as page:
            page.write(bytes(PAGE_BYTES))
            page.flush()
            os.fsync(page.fileno())
    except OSError as refused:
        error.__cause__ = refused
