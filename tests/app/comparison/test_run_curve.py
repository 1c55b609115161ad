import json
from pathlib import Path

import pytest

from app.comparison.run_curve import (
    CURVE,
    EVALUATIONS,
    Evaluations,
    Judged,
    keep_measured,
    measure_curve,
    measured_curve,
    on_grid,
)
from retriever.artifacts import BEST
from retriever.durable import read_lines
from retriever.store import Store
from tests.app.comparison.results_stand_ins import Bed, Stop


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    return Bed(tmp_path)


def test_the_grid_is_every_so_many_steps_and_the_last(bed: Bed) -> None:
    assert [one.facts["step"] for one in on_grid(bed.store, 2)] == [0, 4, 6, 10, 11]
    assert [one.facts["step"] for one in on_grid(bed.store, 5)] == [0, 10, 11]
    bed.publish(6, 9)  # a trainer that resumed further back was there again
    assert [one.facts["weights_sha256"] for one in on_grid(bed.store, 6)] == ["weights-0", "weights-9", "weights-4"]


def test_test_is_read_for_what_dev_chose_and_for_the_last(bed: Bed) -> None:
    points = measure_curve(bed.folder, bed.store, 2, bed.measuring(), [])
    assert [point.step for point in points] == bed.opened == [0, 4, 6, 10, 11]
    dev = [point.dev["nDCG@10"] for point in points]
    better = [value > max([-1.0, *dev[:place]]) for place, value in enumerate(dev)]
    assert better[0] and not better[-1] and dev[3] == max(dev), dev
    assert [point.test is not None for point in points] == [*better[:-1], True]
    for point in points:
        assert (point.test is None) == (point.per_query == {})
        if point.test is not None:
            assert point.per_query["nDCG@10"].mean() == pytest.approx(point.test["nDCG@10"], abs=1e-5)
            assert "AUC" in point.test and point.computed_by == "hashing"


def test_only_the_best_and_the_last_checkpoint_are_kept(bed: Bed) -> None:
    points = measure_curve(bed.folder, bed.store, 2, bed.measuring(), [])
    assert bed.store.checkpoints.pointed(BEST) == points[3].checkpoint == 3
    assert bed.store.checkpoints.numbers() == [3, 4]
    assert list(bed.store.embeddings.iterdir()) == [], "no generation uses the vectors"


def test_checkpoints_that_somebody_works_with_stay_for_now(bed: Bed) -> None:
    with Store(bed.store.root).checkpoints.writer():
        measure_curve(bed.folder, bed.store, 2, bed.measuring(), [])
    assert bed.store.checkpoints.numbers() == [0, 1, 2, 3, 4]
    keep_measured(bed.store)
    assert bed.store.checkpoints.numbers() == [3, 4]


def test_what_was_measured_is_read_again(bed: Bed) -> None:
    assert measured_curve(bed.folder, bed.judged) is None
    points = measure_curve(bed.folder, bed.store, 2, bed.measuring(), [])
    again = measured_curve(bed.folder, bed.judged)
    assert again is not None and [(p.step, p.dev, p.test) for p in again] == [(p.step, p.dev, p.test) for p in points]
    other = Judged(bed.corpus, bed.judged.dev, bed.judged.dev, bed.judged.settings)
    assert measured_curve(bed.folder, other) is None, "on other queries"
    text = (bed.folder / EVALUATIONS).read_text()
    (bed.folder / EVALUATIONS).write_text("".join(text.splitlines(keepends=True)[1:]))
    assert measured_curve(bed.folder, bed.judged) is None, "a figure is missing"


def test_a_stop_in_between_loses_no_figure(bed: Bed, tmp_path: Path) -> None:
    def stopping(phase: str, done: int, total: int) -> None:
        if len(bed.opened) == 3:
            raise Stop

    with pytest.raises(Stop):
        measure_curve(bed.folder, bed.store, 2, bed.measuring(stopping), [])
    assert not (bed.folder / CURVE).exists() and bed.store.checkpoints.numbers() == [0, 1, 2, 3, 4]
    bed.opened.clear()
    points = measure_curve(bed.folder, bed.store, 2, bed.measuring(), [])
    assert bed.opened == [6, 10, 11]
    undisturbed = Bed(tmp_path / "other")
    assert [
        (p.dev, p.test) for p in measure_curve(undisturbed.folder, undisturbed.store, 2, undisturbed.measuring(), [])
    ] == [(p.dev, p.test) for p in points]


def test_the_untrained_model_is_measured_once_for_all_runs(bed: Bed, tmp_path: Path) -> None:
    measure_curve(bed.folder, bed.store, 2, bed.measuring(), [])
    second = Bed(tmp_path / "second")
    second.publish(20, 7)
    points = measure_curve(second.folder, second.store, 10, second.measuring(), [bed.folder / EVALUATIONS])
    assert second.opened == [20] and [point.step for point in points] == [0, 10, 20]
    assert len(read_lines(second.folder / EVALUATIONS)) == 3, "borrowed figures are copied: the other run may go"


def test_a_borrowed_figure_without_test_is_measured_where_test_is_wanted(bed: Bed) -> None:
    measure_curve(bed.folder, bed.store, 2, bed.measuring(), [])
    lines = read_lines(bed.folder / EVALUATIONS)
    for line in lines:
        line.update(test=None, per_query={})
    other = bed.folder / "other"
    other.mkdir()
    (other / EVALUATIONS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    bed.opened.clear()
    points = measure_curve(bed.folder / "other", bed.store, 2, bed.measuring(), [])
    assert bed.opened == [10, 11] and all(point.test is not None for point in points)
    assert Evaluations(other / EVALUATIONS).find(lines[0]["key"]) is not None
