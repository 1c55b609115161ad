"""What several test files of the retriever share: two ranks that have trained."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from retriever.durable import appearing, exclusive

ROOT = Path(__file__).parent.parent.parent
SCRIPT = Path(__file__).with_name("ranks_script.py")


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two real processes have run ranks_script.py, once for all tests that look at it.

    Of several processes that test, one lets them run and the others wait.
    """
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    with exclusive(shared / "ranks.lock", "the two ranks", wait=True):
        folder = shared / "ranks"
        if not folder.exists():
            with appearing(folder) as made:
                made.mkdir()
                _run_ranks(made)
        return folder


def _run_ranks(folder: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, str(SCRIPT), str(folder)], env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
