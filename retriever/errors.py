"""The exceptions that hone raises on purpose, from the general to the particular.

* HoneError
  * InputError: something that a person wrote is wrong; the message names file, line or key, and the mend
    * FormatError: the store was written by a newer hone
  * StoreError: the store cannot do what was asked
    * BusyError: another writer holds the lock of this kind
    * CorruptError: an artifact's bytes are not those of its manifest

Does not know how they are shown.
"""

from collections.abc import Mapping


class HoneError(Exception):
    """Root of everything that hone raises on purpose; shown as one line, exit code 2."""


class InputError(HoneError, ValueError):
    """A file, line, field or key that a person wrote is wrong."""


def require(rules: Mapping[str, bool], place: str = "") -> None:
    """Raise InputError with ``place``, as "[train] ", and the first of ``rules`` that does not hold."""
    for rule, holds in rules.items():
        if not holds:
            raise InputError(f"{place}{rule}")


class FormatError(InputError):
    """The store's format is newer than this code can read."""


class StoreError(HoneError):
    """The store cannot do what was asked."""


class BusyError(StoreError):
    """Another process writes artifacts of this kind."""


class CorruptError(StoreError):
    """A file of an artifact is missing, truncated or altered."""
