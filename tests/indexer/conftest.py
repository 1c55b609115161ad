"""Fixtures of the indexer's tests: a tiny store, and one whose corpus spans three blocks."""

import shutil
from pathlib import Path

import faiss
import pytest

from retriever.data import Corpus
from retriever.store import Store
from tests.stand_ins import tiny_store, write_tiny_data


@pytest.fixture(scope="session", autouse=True)
def _one_faiss_thread() -> None:
    """Threads that spin for a core cost more than they give on so little data."""
    faiss.omp_set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BEIR folder of 60 passages."""
    return write_tiny_data(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture
def tiny(tmp_path: Path, tiny_data: Path) -> tuple[Store, Corpus]:
    """A new store with the corpus of ``tiny_data``."""
    return tiny_store(tmp_path / "store", tiny_data)


@pytest.fixture(scope="session")
def wide_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BEIR folder of 9,000 passages: two whole blocks and a part of a third."""
    return write_tiny_data(tmp_path_factory.mktemp("wide") / "data", passages=9000)


@pytest.fixture(scope="session")
def _wide_store(tmp_path_factory: pytest.TempPathFactory, wide_data: Path) -> Path:
    return tiny_store(tmp_path_factory.mktemp("wide") / "store", wide_data)[0].root


@pytest.fixture
def wide(tmp_path: Path, _wide_store: Path) -> tuple[Store, Corpus]:
    """A new store with the corpus of ``wide_data``."""
    store = Store(Path(shutil.copytree(_wide_store, tmp_path / "store")))
    return store, Corpus(store.corpora.at(0))
