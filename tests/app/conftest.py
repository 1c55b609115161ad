import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.indexing import index_data
from app.training import run_training
from tests.app.command_line import Hone, caller, opened, silent, write_run
from tests.app.served import Server, new_store, publish_generation, serving
from tests.stand_ins import write_tiny_data
from tests.tiny_model import write_tiny_model


@pytest.fixture(autouse=True)
def _own_precision(own_precision: None) -> None:
    """Let each test choose its precision."""


@pytest.fixture
def own_logging() -> Iterator[None]:
    """How this process logs is afterwards as it was: a server that runs in it takes its libraries' loggers."""
    found = [(one, one.handlers[:], one.propagate) for one in map(logging.getLogger, logging.root.manager.loggerDict)]
    at_root = logging.root.handlers[:]
    logging.captureWarnings(False)  # a server of another test may have begun to, and pytest has undone one half of it
    yield
    logging.captureWarnings(False)
    logging.root.handlers[:] = at_root
    for one, handlers, propagate in found:
        one.handlers[:], one.propagate = handlers, propagate


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server that answers from generation 0 of eight passages."""
    store, corpus = new_store(tmp_path)
    publish_generation(store, corpus)
    with serving(store) as server:
        yield server


@pytest.fixture
def empty_server(tmp_path: Path) -> Iterator[Server]:
    """A server over a store without any generation."""
    store, _ = new_store(tmp_path)
    with serving(store) as server:
        yield server


@pytest.fixture
def hone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Hone:
    """Calls the command line in this process, from ``tmp_path``."""
    monkeypatch.chdir(tmp_path)
    for name in ("HONE_STORE", "HONE_HOST", "HONE_PORT", "HONE_RANKER", "HONE_DATABASE_URL", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    # As main sets them, for the processes that a test starts as well; set here they are put back afterwards.
    own = {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "JAX_PLATFORMS": "cpu"}
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    return caller(monkeypatch, capsys)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/, model/ and run.toml, to be read only."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_data(folder / "data")
    write_tiny_model(folder / "model")
    write_run(folder / "run.toml", folder / "data", folder / "model")
    return folder


@pytest.fixture(scope="session")
def _indexed(tiny: Path) -> Path:
    index_data(tiny / "indexed", tiny / "data", str(tiny / "model"), {"precision": "fp32"}, silent)
    return tiny / "indexed"


@pytest.fixture(scope="session")
def _trained(tiny: Path) -> Path:
    run_training(opened(tiny / "run.toml", tiny / "trained"), tiny / "run.toml", "inline")
    return tiny / "trained"


@pytest.fixture
def indexed(_indexed: Path, tmp_path: Path) -> Path:
    """A store with one generation, of the model as it is."""
    return shutil.copytree(_indexed, tmp_path / "store")


@pytest.fixture
def trained(_trained: Path, tmp_path: Path) -> Path:
    """A store that tiny's run.toml was trained in: generations of the steps 0, 3 and 6."""
    return shutil.copytree(_trained, tmp_path / "store")
