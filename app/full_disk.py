"""Tells a full disk or database from other errors, however a library says it.

Does not know what was to be written.
"""

import errno
import re

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
DISK_FULL_STATE = "53100"
"""PostgreSQL's SQLSTATE `disk_full`."""
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
