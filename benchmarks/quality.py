"""How good the negatives make a retriever: nDCG@10 against steps and seconds by `hone compare`.

The peers are the systems that people train today, in-batch negatives and negatives mined once, under the same seeds,
data and steps. Does not know how runs are trained or measured.
"""

import json
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.report import last_line, show

METRIC = "nDCG@10"
KEYS = ("zero_shot", "in_batch", "static", "best", "systems", "curve")
SYSTEMS: dict[str, dict[str, Any]] = {
    "in_batch": {"train.num_negatives": 0, "refresh.trigger": "never"},
    "static": {"refresh.trigger": "once", "refresh.lag": 0},
    "refreshed": {"refresh.lag": 5},
    "max_loss": {"refresh.lag": 5, "train.drawn_negatives": 8},
}


def main() -> None:
    """Write a comparison of SYSTEMS, carry it out, and tell what it found."""
    given = _options()
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "compare.toml").write_text(comparison(given))
    host = machine.look()
    show(host.sentence)
    command = ["compare", str(given.out / "compare.toml"), "--out", str(given.out / "runs")]
    subprocess.run([sys.executable, "-m", "app.cli", *command], check=True, stdout=subprocess.DEVNULL)
    results = json.loads((given.out / "runs" / "results.json").read_text())
    show((given.out / "runs" / "report.md").read_text())
    last_line(
        KEYS, figures(results), {}, steps=given.steps, seeds=given.seeds, model=given.model, machine=host.as_facts()
    )


def _options() -> Namespace:
    parser = ArgumentParser(prog="python -m benchmarks.quality", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a data set in BEIR layout with train and test")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs; the same command goes on there")
    parser.add_argument("--dev", default="train:0.1", help="the split that chooses checkpoints")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--max-length", type=int, default=128, help="tokens of a text")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--every", type=int, default=50, help="steps between two refreshes, and two figures")
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--temperature", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, nargs="+", default=[13, 14, 15])
    parser.add_argument("--quick", action="store_true", help="one seed, 60 steps")
    given = parser.parse_args()
    if given.quick:
        given.seeds, given.steps, given.every = given.seeds[:1], 60, 20
    return given


def comparison(given: Namespace) -> str:
    """Return the text of the compare.toml that the flags ask for."""
    run: dict[str, dict[str, Any]] = {
        "data": {"path": str(given.data.absolute()), "dev": given.dev},
        "model": {
            "name": given.model,
            "query_max_length": given.max_length,
            "passage_max_length": given.max_length,
        },
        "train": {"learning_rate": given.learning_rate, "num_negatives": 1, "save_every": given.every},
        "refresh": {"trigger": f"steps:{given.every}", "adopt": "scheduled"},
        "loss": {"temperature": given.temperature},
        "negatives": {"depth": 30},
    }
    lines = [f"seeds = {given.seeds}", 'baseline = "static"', "[budget]", f"steps = {given.steps}"]
    for table, keys in run.items():
        lines += [f"[run.{table}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
    for system, keys in SYSTEMS.items():
        lines += [f"[systems.{system}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
    return "\n".join(lines) + "\n"


def figures(results: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of KEYS from the ``results`` of a comparison, at equal steps.

    "best" names the system of the highest mean, the peers among them; "systems" has each one's mean and its interval
    over seeds, null for one; "curve" each one's dev figures by step and by seconds, means over seeds.
    """
    (steps,) = [reading for reading in results["findings"]["readings"] if reading["axis"] == "steps"]
    means = {name: of[METRIC]["mean"] for name, of in steps["systems"].items()}
    best = max(means, key=lambda name: means[name])
    return {
        "zero_shot": results["findings"]["zero_shot"][best][METRIC],
        "in_batch": means["in_batch"],
        "static": means["static"],
        "best": {"system": best, METRIC: means[best]},
        "systems": {
            name: {METRIC: means[name], "interval": of[METRIC]["interval"]} for name, of in steps["systems"].items()
        },
        "curve": {name: _curve([run for run in results["runs"] if run["system"] == name]) for name in means},
    }


def _curve(runs: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [
        {
            "step": of_seeds[0]["step"],
            "seconds": round(sum(one["seconds"] for one in of_seeds) / len(of_seeds), 1),
            METRIC: round(sum(one["dev"][METRIC] for one in of_seeds) / len(of_seeds), 5),
        }
        for of_seeds in zip(*(run["curve"] for run in runs), strict=True)
    ]


if __name__ == "__main__":
    main()
