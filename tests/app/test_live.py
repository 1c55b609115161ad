import io
import json
from typing import Any

import pytest
from rich.console import Console

from app.live import TrainingView, duration, progress_view, training_view

STEP: dict[str, Any] = {
    "of": 100,
    "loss": 0.4321,
    "learning_rate": 1e-3,
    "steps_per_second": 2.5,
    "eta_seconds": 65.0,
    "negatives": 3,
    "generation": 2,
    "staleness": 17,
}


class Screen:
    """A view and the terminal that it draws on."""

    def __init__(self, width: int = 80) -> None:
        self._stream = io.StringIO()
        self._console = Console(file=self._stream, width=width, force_terminal=False)
        self.view = TrainingView(self._console)

    def printed(self) -> str:
        """What the view has printed above the table."""
        return self._stream.getvalue()

    def drawn(self) -> str:
        """The table as it stands."""
        with self._console.capture() as capture:
            self._console.print(self.view)
        return capture.get()


def test_before_anything_is_known() -> None:
    drawn = Screen().drawn()
    assert "in-batch only" in drawn and "waits for a marked checkpoint" in drawn
    assert "None" not in drawn and "left" not in drawn


def test_the_table_shows_progress_dev_staleness_and_the_rebuild() -> None:
    screen = Screen()
    screen.view.report("generation_published", number=1, step=0, dev={"nDCG@10": 0.5})
    screen.view.report("generation_published", number=2, step=20, dev={"nDCG@10": 0.61})
    screen.view.report("step", step=37, **STEP)
    screen.view.report("build_started", checkpoint=5, step=30)
    drawn = screen.drawn()
    lines = [line.split(maxsplit=1)[-1].strip() for line in drawn.splitlines()]
    assert lines[0] == "37 of 100" and lines[1].startswith("━")
    assert lines[2:] == [
        "0.4321",
        "2.50 steps/s, 1 min 5 s left",
        "nDCG@10  0.500 @0 → 0.610 @20",
        "generation 2, 17 steps stale",
        "encodes the corpus with checkpoint 5 (step 30)",
    ]
    screen.view.report("progress", phase="encode", done=1030, total=2060, rate=12.0, eta_seconds=2.5)
    assert "encode 1,030 of 2,060, 12/s, 2 s left" in screen.drawn()
    screen.view.report("progress", phase="encode", done=30, total=60, rate=1.25, eta_seconds=24)
    assert "encode 30 of 60, 1.2/s, 24 s left" in screen.drawn()
    screen.view.report("progress", phase="publish", done=1, total=1)
    assert screen.drawn().splitlines()[-1].split() == ["refresher", "publish"]
    screen.view.report("negatives_published", number=2, generation=2, step=20)
    assert "waits for a marked checkpoint" in screen.drawn()


def test_every_line_of_the_table_stands_alone_on_a_narrow_terminal() -> None:
    screen = Screen(width=80)
    for step in (0, 12000, 24000, 36000):
        screen.view.report("generation_published", number=step // 100, step=step, dev={"nDCG@10": 0.5})
    late = {"of": 48000, "eta_seconds": 40000.0, "generation": 1234, "staleness": 11999, "loss": 0.00012}
    screen.view.report("step", step=36001, **{**STEP, **late})
    screen.view.report("progress", phase="encode", done=1_000_000, total=21_000_000, rate=1234.5, eta_seconds=19000.0)
    lines = screen.drawn().splitlines()
    labels = [line[:11].strip() for line in lines]
    assert labels == ["step", "", "loss", "rate", "dev nDCG@10", "negatives", "refresher"]


def test_a_trainer_that_waits_says_so_until_it_steps_again() -> None:
    screen = Screen()
    screen.view.report("step", step=37, **STEP)
    screen.view.report("waiting", step=37, seconds=65.1)
    assert "17 steps stale; has waited 1 min 5 s for newer ones" in screen.drawn()
    screen.view.report("step", step=38, **STEP)
    assert "has waited" not in screen.drawn() and screen.printed() == ""


def test_measured_staleness_is_shown_until_newer_negatives_come() -> None:
    screen = Screen()
    screen.view.report("step", **STEP)
    screen.view.report("staleness", step=7, overlap=0.871, drift=-0.1, easy=0.2)
    assert "17 steps stale, overlap@10 0.87" in screen.drawn()
    screen.view.report("adopted", step=8, negatives=1, generation=0, staleness=8)
    assert "overlap" not in screen.drawn()


def test_what_happens_once_is_a_sentence_above_the_table() -> None:
    screen = Screen()
    screen.view.report("adopted", step=8, negatives=1, generation=0, staleness=8)
    screen.view.report("generation_published", number=3, step=40, dev={"nDCG@10": 0.71234})
    screen.view.report("generation_published", number=4, step=60, dev={})
    screen.view.report("refresher_started", pid=77)
    screen.view.report("negatives_published", number=2, generation=3, step=40)
    screen.view.report("drained")
    assert screen.printed().splitlines() == [
        "step 8: adopts negatives 1 of generation 0, 8 steps old",
        "generation 3 of step 40, dev nDCG@10 0.7123",
        "generation 4 of step 60",
        "refresher started: pid 77",
        "negatives 2 mined from generation 3",
        "drained",
    ]


def test_what_happens_often_is_no_sentence() -> None:
    screen = Screen()
    screen.view.report("step", step=1, **STEP)
    screen.view.report("progress", phase="encode", done=1, total=2)
    screen.view.report("build_started", checkpoint=1, step=3)
    assert screen.printed() == ""


@pytest.mark.parametrize("text", ["[refresh] trigger = 'x'", "see [/srv/store] and [bold]", "key[0]"])
def test_brackets_of_a_message_are_no_markup(text: str) -> None:
    screen = Screen()
    screen.view.report("warning", message=text)
    screen.view.report("corrupt", error=text)
    assert screen.printed().splitlines() == [f"warning: {text}", f"corrupt: error {text}"]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (3599, "59 min 59 s"), (3661, "1 h 1 min")],
)
def test_durations_as_a_person_says_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_on_no_terminal_both_views_are_json_lines_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with training_view() as report:
        report("step", step=1, loss=0.5)
    with progress_view() as report:
        report("progress", phase="encode", done=1, total=2)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert [json.loads(line)["event"] for line in printed.err.splitlines()] == ["step", "progress"]


def test_on_a_terminal_one_line_is_rewritten(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with progress_view() as report:
        report("progress", phase="encode", done=1, total=2)
        report("warning", message="[index] factory is coarse")
    with training_view() as report:
        report("step", step=1, **STEP)
        report("warning", message="slow")
    shown = capsys.readouterr().err
    assert "[index] factory is coarse" in shown and "slow" in shown
    assert "\x1b[2K" in shown and "generation 2, 17 steps stale" in shown
    assert '"event"' not in shown
