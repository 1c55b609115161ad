"""Messages for those outside: where the server keeps its files is left out of them.

Does not know who is told, nor what the log keeps.
"""

import re
from pathlib import Path

from retriever.store import KINDS

# No match begins within a word, as the class of its first characters has it: else a long word is read once a character.
ABSOLUTE = re.compile(r"(?<![\w./~+-])(?:[a-z+]+:///?)?(?P<path>/[\w.@%+~-]+(?:/[\w.@%+~-]+)+)")
"""An absolute path, or a URL that names no host and so a file of this machine, as file:/// and sqlite:////."""
BEFORE_A_KIND = re.compile(rf"(?<![\w./:@~+-])(?:[\w.@+~-]+/)+(?=(?:{'|'.join(KINDS)})\b)")
"""Where a store lies, as a relative path."""


def hide_paths(message: str) -> str:
    """Return ``message`` with each absolute path of this machine cut to its last name.

    Of a path into an artifact, absolute or not, kind and number stay: generations/000003/index.faiss. A route of HTTP
    is no path of the machine and stays whole, as does what stands behind a space in a path. What a client sent is not
    told apart: an id that reads like a path of this machine is cut, too. It goes by patterns and not by the folders
    that are known, as a library may name any other, and the error of a job one of the machine that it ran on.
    """
    return BEFORE_A_KIND.sub("", ABSOLUTE.sub(_shown, message))


def _shown(found: re.Match[str]) -> str:
    _, *parts = Path(found["path"]).parts
    if not _exists(Path("/", parts[0])):
        return found[0]
    kinds = [place for place, part in enumerate(parts) if part in KINDS]
    return "/".join(parts[kinds[-1] if kinds else -1 :])


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # no file has so long a name
        return False
