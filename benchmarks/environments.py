"""Each peer's own Python: a virtual environment under .bench/, made on demand from benchmarks/peers/NAME.txt.

Does not know what runs in it.
"""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PEERS = Path(__file__).parent / "peers"
OURS = "hone"
"""The environment that runs the benchmark itself."""
HERE = "HONE_BENCH_HERE"
"""Set: peers run there too, in the versions that it has; for a machine that reaches no package index."""
WITHOUT = "# without "
"""Begins the line of a list of pins that names a package to remove again: a peer asks for it and does not need it."""


def peers() -> list[str]:
    """Return the names of the environments that can be made."""
    return sorted(path.stem for path in PEERS.glob("*.txt"))


def bench_folder() -> Path:
    """Return where environments and what else a benchmark keeps lie: $HONE_BENCH, else .bench/ in the checkout."""
    return Path(os.environ.get("HONE_BENCH", ROOT / ".bench")).absolute()


def python_of(name: str) -> Path:
    """Return the Python of environment ``name``; make or renew it first if its list of pins is not what is installed.

    Raises ValueError for an unknown name and
    CalledProcessError if pip fails.
    """
    if name != OURS and name not in peers():
        raise ValueError(f"environment {name!r}: benchmarks/peers/ has {', '.join(peers())}")
    if name == OURS or os.environ.get(HERE):
        return Path(sys.executable)
    bench = bench_folder()
    bench.mkdir(parents=True, exist_ok=True)
    folder, pins = bench / name, (PEERS / f"{name}.txt").read_text()
    stamp = folder / "installed.txt"
    with (bench / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two benchmarks may want it at once
        if not stamp.is_file() or stamp.read_text() != pins:
            _make(folder, PEERS / f"{name}.txt")
            stamp.write_text(pins)
    return folder / "bin" / "python"


def _make(folder: Path, pins: Path) -> None:
    print(f"Making {folder} from {pins.name}: minutes on the first run", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    index = os.environ.get("TORCH_INDEX")  # as in the Makefile
    more = ["--extra-index-url", index] if index else []
    subprocess.run([*pip, "install", *more, "-r", str(pins)], check=True)
    unwanted = [line.split()[2] for line in pins.read_text().splitlines() if line.startswith(WITHOUT)]
    if unwanted:
        subprocess.run([*pip, "uninstall", "--yes", *unwanted], check=True)
