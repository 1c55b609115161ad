"""The wheel: it holds the four packages alone, installs, and runs from an empty folder."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.stand_ins import write_tiny_data
from tests.tiny_model import write_tiny_model

ROOT = Path(__file__).parent.parent
PACKAGES = ("app", "indexer", "miner", "retriever")

pytestmark = pytest.mark.slow


def run(*command: object, folder: Path, **environment: str) -> str:
    """Run a command in ``folder``, with nothing of this checkout on its path, and return what it prints."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HONE", "VIRTUAL_"))}
    ended = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env={**bare, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    return ended.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the files that git knows of."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", folder=ROOT).splitlines()
    for name in listed:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, folder=source)
    (built,) = out.glob("hone-*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel in it; the libraries are those of this one."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, folder=folder)
    installed = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", installed, "install", "--no-deps", "--no-index", "--quiet"]
    run(*command, wheel, folder=folder)
    site = Path(run(installed, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=folder).strip())
    # Behind the wheel's own; an editable install in there is a .pth file, which is not read from a path.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return installed


def test_the_wheel_holds_the_packages_and_what_they_need(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        described = archive.read(metadata).decode()
    top = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert top == {*PACKAGES}, "no tests, no benchmarks, no data"
    modules = {path.relative_to(ROOT).as_posix() for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    styles = {path.relative_to(ROOT).as_posix() for name in PACKAGES for path in (ROOT / name).rglob("*.css")}
    assert {name for name in names if name.endswith(".css")} == styles
    assert "Name: hone\n" in described and "Provides-Extra: cpu\n" in described
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_it_runs_from_an_empty_folder(python: Path, tmp_path: Path) -> None:
    data, model = write_tiny_data(tmp_path / "data"), write_tiny_model(tmp_path / "model")
    empty = tmp_path / "empty"
    empty.mkdir()
    hone = python.with_name("hone")
    where = run(python, "-c", "import app.cli; print(app.cli.__file__)", folder=empty).strip()
    assert Path(where).is_relative_to(python.parent.parent), "the wheel's own, not this checkout"
    assert "Usage: hone" in run(hone, "--help", folder=empty)
    made = json.loads(run(hone, "index", data, "--model", model, "--json", folder=empty))
    assert (made["number"], made["rows"]) == (0, 60)
    found = json.loads(run(hone, "search", "baka beki", "--json", folder=empty))
    assert found["generation"] == 0 and len(found["hits"]) == 5
    assert [path.name for path in empty.iterdir()] == ["store"]
    version = run(python, "-c", "import importlib.metadata as m; print(m.version('hone'))", folder=empty)
    manifest = json.loads((empty / "store/generations/000000/manifest.json").read_text())
    assert manifest["code_version"].startswith(version.strip())
