from pathlib import Path

import pytest

from miner.mining import MiningConfig, MiningTask
from retriever.ingest import load_query_set
from retriever.store import Store
from tests.miner.bench import DEPTH, Bench
from tests.stand_ins import tiny_store, write_tiny_data


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", create=True)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    data = write_tiny_data(tmp_path / "data")
    store, corpus = tiny_store(tmp_path / "store", data)
    said: list[str] = []
    train = load_query_set(data, "train", corpus, warn=said.append)
    return Bench(store, corpus, MiningTask(corpus, train, MiningConfig(depth=DEPTH), seed=13), said)
