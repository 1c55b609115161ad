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
    """A view and the terminal that it draws on, 100 columns wide."""

    def __init__(self) -> None:
        self._stream = io.StringIO()
        self._console = Console(file=self._stream, width=100, force_terminal=False)
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


def test_the_table_shows_progress_dev_staleness_and_the_rebuild() -> None:
    screen = Screen()
    screen.view.report("generation_published", number=1, step=0, dev={"nDCG@10": 0.5})
    screen.view.report("generation_published", number=2, step=20, dev={"nDCG@10": 0.61})
    screen.view.report("step", step=37, **STEP)
    screen.view.report("build_started", checkpoint=5, step=30)
    drawn = screen.drawn()
    for text in ("37 of 100", "0.4321", "2.50 steps/s", "1 min 5 s", "0.500 @0 → 0.610 @20"):
        assert text in drawn
    assert "generation 2, 17 steps stale" in drawn
    assert "encodes the corpus with checkpoint 5 (step 30)" in drawn
    screen.view.report("progress", phase="encode", done=30, total=60, rate=12.0, eta_seconds=2.5)
    assert "encode 30 of 60, 12/s, 2 s left" in screen.drawn()


def test_what_happens_once_is_a_sentence_above_the_table() -> None:
    screen = Screen()
    screen.view.report("adopted", step=8, negatives=1, generation=0, staleness=8)
    screen.view.report("generation_published", number=3, step=40, dev={"nDCG@10": 0.71234})
    screen.view.report("generation_published", number=4, step=60, dev={})
    screen.view.report("refresher_started", pid=77)
    screen.view.report("drained")
    assert screen.printed().splitlines() == [
        "step 8: adopts negatives 1 of generation 0, 8 steps old",
        "generation 3 of step 40, dev nDCG@10 0.7123",
        "generation 4 of step 60",
        "refresher started: pid 77",
        "drained",
    ]


def test_what_happens_often_is_no_sentence() -> None:
    screen = Screen()
    screen.view.report("step", step=1, **STEP)
    screen.view.report("progress", phase="encode", done=1, total=2)
    assert screen.printed() == ""


@pytest.mark.parametrize("text", ["[refresh] trigger = 'x'", "see [/srv/store] and [bold]", "key[0]"])
def test_brackets_of_a_message_are_no_markup(text: str) -> None:
    screen = Screen()
    screen.view.report("warning", message=text)
    screen.view.report("corrupt", error=text)
    assert screen.printed().splitlines() == [f"warning: {text}", f"corrupt: error {text}"]


@pytest.mark.parametrize(
    ("seconds", "said"), [(None, "–"), (0, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (3601, "60 min 1 s")]
)
def test_durations_as_a_person_says_them(seconds: float | None, said: str) -> None:
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
