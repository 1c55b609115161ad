"""Tells a full disk or database from other errors, however a library says it.

Does not know what was to be written.
"""

import errno
import os
import re
import sqlite3
import tempfile
from pathlib import Path

from sqlalchemy.engine import make_url

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
    anything.
    """
    said = getattr(error, "orig", None) or error
    numbers = getattr(said, "errno", None), getattr(said, "sqlstate", None)
    return numbers[0] in NO_ROOM or numbers[1] == DISK_FULL_STATE or DISK_IS_FULL.search(str(said)) is not None


def is_full_database(error: BaseException, url: str) -> bool:
    """Tell whether ``error``, its driver's own, means that the database at ``url`` had no room.

    Of a disk quota SQLite says what it says of a broken disk, and keeps no number of the system's error. So the disk is
    asked: a page is written beside the database, and is gone at once.
    """
    if is_full(error):
        return True
    file = make_url(url).database
    if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_IOERR or not file:
        return False
    try:
        with tempfile.TemporaryFile(dir=Path(file).parent) as page:
            page.write(bytes(PAGE_BYTES))
            page.flush()
            os.fsync(page.fileno())
    except OSError as refused:
        return is_full(refused)
    return False
