import platform
from pathlib import Path

import pytest

from app.python_sources import default_roots, find_packages, package_versions, source_files
from retriever.errors import InputError


def make(root: Path, *files: str) -> Path:
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("", encoding="utf-8")
    return root


def test_public_packages_and_modules_are_found(tmp_path: Path) -> None:
    root = make(
        tmp_path,
        *("good/__init__.py", "single.py", "_private/a.py", "__editable__x.py", "tests/a.py", "test_me.py"),
        *(
            "retriever/a.py",
            "app/a.py",
            "good-1.0.dist-info/METADATA",
            "native.so",
            "site-packages/other/a.py",
        ),
    )
    assert find_packages([root]) == {"good": (root / "good",), "single": (root / "single.py",)}


def test_a_namespace_over_two_roots_is_one_package(tmp_path: Path) -> None:
    one = make(tmp_path / "one", "shared/a.py", "shared/both.py")
    two = make(tmp_path / "two", "shared/b.py", "shared/both.py")
    packages = find_packages([one, two, one])
    assert source_files(packages["shared"]) == {
        "shared.a": one / "shared/a.py",
        "shared.b": two / "shared/b.py",
        "shared.both": one / "shared/both.py",
    }


def test_tests_and_vendored_copies_are_left_out(tmp_path: Path) -> None:
    root = make(
        tmp_path / "pkg",
        *(
            "__init__.py",
            "z.py",
            "sub/__init__.py",
            "sub/a.py",
            "tests/t.py",
            "sub/test/t.py",
            "_vendor/v.py",
        ),
        *(
            "conftest.py",
            "test_a.py",
            "a_test.py",
            "__pycache__/z.py",
            "not-a-name/a.py",
            "data.txt",
            "s c.py",
        ),
    )
    assert list(source_files([root])) == ["pkg", "pkg.sub", "pkg.sub.a", "pkg.z"]


def test_versions_come_from_the_distributions(tmp_path: Path) -> None:
    root = make(tmp_path, "pkg/__init__.py", "unknown.py")
    for name, version in (("Brand", "2.1"), ("other", "3")):
        info = tmp_path / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "RECORD").write_text("pkg/__init__.py,,\n")
    assert package_versions([root], ["pkg", "unknown", "json"]) == {
        "pkg": "Brand 2.1, other 3",
        "unknown": None,
        "json": f"Python {platform.python_version()}",
    }


def test_the_default_roots_hold_this_environment() -> None:
    packages = find_packages(default_roots())
    assert {"numpy", "json"} <= packages.keys()
    assert not {"idlelib", "lib2to3", "test", "retriever"} & packages.keys()


def test_a_missing_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent: not a folder"):
        find_packages([tmp_path / "absent"])
