"""Finds the Python packages below a few folders: which files each has and which distribution brought it.

Does not know what the files say or which of them a data set will use.
"""

import importlib.metadata
import os
import platform
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from retriever.errors import InputError

OWN_PACKAGES = frozenset({"app", "indexer", "miner", "retriever"})
SKIPPED_TOP = frozenset({"idlelib", "lib2to3", "site-packages", "dist-packages"})
TEST_FOLDERS = frozenset({"test", "tests", "_test", "_tests"})
# Copies of other packages: they would put one package's text into two splits.
VENDOR_FOLDERS = frozenset({"_vendor", "_vendored", "_vendored_packages", "vendor", "vendored", "extern", "externals"})

Packages = dict[str, tuple[Path, ...]]
"""Top-level name → the folders or single files that hold it, in the order of the roots."""


def default_roots() -> list[Path]:
    """Return the site-packages of the running interpreter, then its standard library."""
    return [Path(sysconfig.get_path(key)) for key in ("purelib", "platlib", "stdlib")]


def find_packages(roots: Sequence[Path]) -> Packages:
    """Return every public top-level package or module of ``roots``, except hone's own and test packages.

    A name with a leading underscore is the inside of another package, so it is left out. Raises InputError
    for a root that is no folder.
    """
    found: dict[str, list[Path]] = {}
    for root in dict.fromkeys(root.resolve() for root in roots):
        if not root.is_dir():
            raise InputError(f"{root}: not a folder; give folders that hold Python packages")
        for entry in sorted(root.iterdir()):
            name = entry.name.removesuffix(".py")
            if _is_public(name) and (entry.is_dir() or name != entry.name):
                found.setdefault(name, []).append(entry)
    return {name: tuple(places) for name, places in sorted(found.items())}


def _is_public(name: str) -> bool:
    return (
        name.isidentifier()
        and not name.startswith(("_", "test_"))
        and name not in OWN_PACKAGES | SKIPPED_TOP | TEST_FOLDERS | VENDOR_FOLDERS
    )


def source_files(places: Sequence[Path]) -> dict[str, Path]:
    """Return dotted module name → file of one package, tests and vendored copies left out, sorted by name.

    The names begin with the package's own; where two places hold one module, the first wins.
    """
    modules: dict[str, Path] = {}
    for place in places:
        if place.is_file():
            modules.setdefault(place.stem, place)
            continue
        for folder, subfolders, names in os.walk(place):
            subfolders[:] = [name for name in subfolders if name.isidentifier() and not _is_left_out(name)]
            prefix = Path(place.name, Path(folder).relative_to(place)).parts
            for name in names:
                stem = name.removesuffix(".py")
                if stem != name and stem.isidentifier() and not _is_test_file(stem):
                    parts = prefix if stem == "__init__" else (*prefix, stem)
                    modules.setdefault(".".join(parts), Path(folder, name))
    return dict(sorted(modules.items()))


def _is_left_out(folder: str) -> bool:
    return folder == "__pycache__" or folder in TEST_FOLDERS | VENDOR_FOLDERS


def _is_test_file(stem: str) -> bool:
    return stem == "conftest" or stem.startswith("test_") or stem.endswith("_test")


def package_versions(roots: Sequence[Path], names: Sequence[str]) -> dict[str, str | None]:
    """Return name → "distribution version", several for a shared namespace, None where none has it."""
    owners: dict[str, set[str]] = {}
    for distribution in importlib.metadata.distributions(path=[str(root) for root in roots]):
        for name in {file.parts[0].removesuffix(".py") for file in distribution.files or ()}:
            owners.setdefault(name, set()).add(f"{distribution.metadata['Name']} {distribution.version}")
    python = f"Python {platform.python_version()}"
    for name in sys.stdlib_module_names:
        owners.setdefault(name, {python})
    return {name: ", ".join(sorted(owners[name])) if name in owners else None for name in names}
