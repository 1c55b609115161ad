from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from app.database import open_database
from app.jobs import Jobs
from retriever.errors import InputError


@pytest.mark.parametrize("turn", range(5))
def test_many_may_open_a_new_database_at_once(tmp_path: Path, turn: int) -> None:
    """As the replicas of a deployment do."""
    together = Barrier(4)

    def open_it(_: int) -> str:
        together.wait()
        table = Jobs(f"sqlite:///{tmp_path / 'hone.db'}")
        job, _new = table.create("rebuild")
        table.close()
        return job.id

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(open_it, range(4)))) == 1


@pytest.mark.parametrize("url", ["nothing", "mysql://there/hone", "sqlite:////nowhere/hone.db"])
def test_a_database_that_cannot_be_opened_is_named(url: str) -> None:
    with pytest.raises(InputError, match="set DATABASE_URL"):
        open_database(url)
