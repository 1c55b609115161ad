import asyncio
import io
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.admission import (
    Admission,
    AdmissionConfig,
    ComputeError,
    Done,
    Lane,
    NotComputedError,
    OverloadedError,
    TooManyTokensError,
    choose,
)
from app.telemetry import json_log
from retriever.errors import InputError
from tests.app.served import wait_for


class Model:
    """Doubles numbers; records its batches, fails on 13, dies on 666, and waits where it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.lane = Lane(self.compute)
        self.open = threading.Event()
        self.open.set()

    def compute(self, items: Sequence[int]) -> list[int]:
        self.batches.append([*items])
        assert self.open.wait(30)
        if 666 in items:
            raise SystemExit("a library called exit")
        if 13 in items:
            raise RuntimeError("a bad input")
        return [2 * item for item in items]


@contextmanager
def admitting(**limits: float) -> Iterator[tuple[Admission, io.StringIO]]:
    log = io.StringIO()
    admission = Admission(AdmissionConfig(**limits), json_log(log))  # type: ignore[arg-type]  # ints and floats by name
    admission.start()
    try:
        yield admission, log
    finally:
        admission.stop()


async def outcome(
    admission: Admission, lane: Lane, items: Sequence[int], tokens: Sequence[int], patient: bool
) -> object:
    try:
        return [*(await admission.compute(lane, items, tokens, patient)).results]
    except (ComputeError, NotComputedError, OverloadedError, TooManyTokensError) as error:
        return type(error)


Asked = list[tuple[list[tuple[int, int]], bool, bool]]
requests: st.SearchStrategy[Asked] = st.lists(
    st.tuples(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 60)), max_size=12), st.booleans(), st.booleans()),
    max_size=12,
)


async def outcomes(admission: Admission, models: Sequence[Model], asked: Asked) -> list[object]:
    """Ask all at once, and return the outcome of each."""
    calls = [
        outcome(admission, models[other].lane, [i for i, _ in inputs], [n for _, n in inputs], patient)
        for inputs, patient, other in asked
    ]
    return await asyncio.gather(*calls)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 64), st.integers(1, 64), st.integers(64, 400), requests)
def test_whatever_the_limits_and_inputs_all_is_answered(
    batch: int, patient_batch: int, queue: int, asked: Asked
) -> None:
    models = [Model(), Model()]
    limits = {"batch_tokens": batch, "patient_batch_tokens": patient_batch, "queue_tokens": queue}
    with admitting(**limits) as (admission, _):
        found = asyncio.run(asyncio.wait_for(outcomes(admission, models, asked), 30))
        assert admission.queued_tokens == 0
    for (inputs, _, _), result in zip(asked, found, strict=True):
        items = [item for item, _ in inputs]
        total = sum(max(1, tokens) for _, tokens in inputs)
        if total > queue:
            assert result is TooManyTokensError
        elif result is not OverloadedError:
            assert result == (ComputeError if 13 in items else [2 * item for item in items])


DEADLY: st.SearchStrategy[Asked] = st.lists(
    st.tuples(
        st.lists(st.tuples(st.sampled_from([1, 2, 13, 666]), st.integers(0, 60)), max_size=6),
        st.booleans(),
        st.booleans(),
    ),
    max_size=12,
)
SECONDS = st.sampled_from([0.0, 1e-4, 2e-3, 30.0])


@settings(max_examples=100, deadline=None)
@given(st.integers(-1, 64), st.integers(-1, 64), st.integers(-1, 400), SECONDS, SECONDS, DEADLY)
def test_whatever_dies_or_comes_too_late_all_is_answered(
    batch: int, patient_batch: int, queue: int, seconds: float, patient_seconds: float, asked: Asked
) -> None:
    """Limits are refused at once, or all ends under them: each answer is right, or says why there is none."""
    names = ("batch_tokens", "patient_batch_tokens", "queue_tokens", "deadline_seconds", "patient_deadline_seconds")
    limits = dict(zip(names, (batch, patient_batch, queue, seconds, patient_seconds), strict=True))
    if min(batch, patient_batch) < 1 or queue < max(batch, patient_batch) or not seconds or not patient_seconds:
        with pytest.raises(InputError):
            AdmissionConfig(**limits)  # type: ignore[arg-type]  # ints and floats by name
        return
    models = [Model(), Model()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.admission.FIRST_PAUSE", 1e-3)
        patch.setattr("app.admission.LONGEST_PAUSE", 1e-3)
        with admitting(**limits) as (admission, _):
            found = asyncio.run(asyncio.wait_for(outcomes(admission, models, asked), 30))
            assert admission.queued_tokens == 0
    for (inputs, _, _), result in zip(asked, found, strict=True):
        items = [item for item, _ in inputs]
        if sum(max(1, tokens) for _, tokens in inputs) > queue:
            assert result is TooManyTokensError
        elif isinstance(result, list):
            assert result == [2 * item for item in items] and not {13, 666} & {*items}
        else:
            assert result in (OverloadedError, NotComputedError) or (result is ComputeError and 13 in items)


@given(st.lists(st.integers(1, 600), min_size=1, max_size=80), st.integers(1, 2048))
def test_a_batch_holds_the_first_and_stays_within_its_tokens(lengths: list[int], budget: int) -> None:
    chosen = choose(lengths, budget)
    assert chosen[0] == 0 and len({*chosen}) == len(chosen)
    assert len(chosen) == 1 or len(chosen) * max(lengths[place] for place in chosen) <= budget
    assert all(lengths[place] <= 2 * lengths[0] + 16 and lengths[0] <= 2 * lengths[place] + 16 for place in chosen)


def test_a_batch_takes_the_nearest_lengths() -> None:
    assert choose([10, 100, 11, 9, 40, 10], 40) == [0, 5, 2]
    assert choose([10, 100, 11, 9, 40, 10], 44) == [0, 5, 2, 3]


async def waiting(admission: Admission, model: Model, *calls: "asyncio.Task[object]") -> None:
    """Let ``calls`` be queued behind a batch in hand, then let the model go on."""
    await asyncio.sleep(0.05)
    model.open.set()
    await asyncio.gather(*calls, return_exceptions=True)


def run_behind(admission: Admission, model: Model, asked: Sequence[tuple[list[int], list[int], bool]]) -> list[object]:
    """Ask while the model is busy with 0; return what became of each."""

    async def ask() -> list[object]:
        model.open.clear()
        first = asyncio.create_task(outcome(admission, model.lane, [0], [1], False))
        await asyncio.to_thread(wait_for, lambda: model.batches == [[0]])
        calls = [asyncio.create_task(outcome(admission, model.lane, *one)) for one in asked]
        await waiting(admission, model, first, *calls)
        return [call.result() for call in calls]

    return asyncio.run(ask())


def test_requests_join_into_a_batch_by_tokens() -> None:
    model = Model()
    with admitting(batch_tokens=30) as (admission, _):
        found = run_behind(admission, model, [([i], [10], False) for i in range(1, 6)])
    assert found == [[2 * i] for i in range(1, 6)]
    assert model.batches == [[0], [1, 2, 3], [4, 5]]


def test_patient_work_waits_for_all_other() -> None:
    model = Model()
    with admitting(batch_tokens=30, patient_batch_tokens=10) as (admission, _):
        run_behind(admission, model, [([1, 2], [10, 10], True), ([3], [10], False), ([4], [10], False)])
    assert model.batches == [[0], [3, 4], [1], [2]]


def test_one_input_and_a_list_are_admitted_alike() -> None:
    model = Model()
    with admitting(batch_tokens=10, patient_batch_tokens=10, queue_tokens=40) as (admission, _):
        found = run_behind(
            admission, model, [([1], [30], False), ([2], [11], False), ([3, 4], [5, 6], False), ([5], [10], False)]
        )
    assert found == [[2], OverloadedError, OverloadedError, [10]]
    with admitting(batch_tokens=10, patient_batch_tokens=10, queue_tokens=40) as (admission, _):
        for items, tokens in (([1], [41]), ([1, 2], [20, 21])):
            assert asyncio.run(outcome(admission, model.lane, items, tokens, False)) is TooManyTokensError


def test_a_deadline_that_passed_in_the_queue_is_never_computed() -> None:
    model = Model()
    with admitting(deadline_seconds=0.02) as (admission, _):
        found = run_behind(admission, model, [([1], [1], False), ([2], [1], False)])
        assert found == [NotComputedError, NotComputedError]
        assert asyncio.run(outcome(admission, model.lane, [3], [1], True)) == [6]
        assert admission.queued_tokens == 0
    assert model.batches == [[0], [3]]


def test_only_the_poisoned_request_fails() -> None:
    model = Model()
    with admitting() as (admission, log):
        found = run_behind(
            admission, model, [([1], [1], False), ([2, 13, 3], [1, 1, 1], False), ([4, 5], [1, 1], False)]
        )
        assert found == [[2], ComputeError, [8, 10]]
        with pytest.raises(ComputeError, match="input 1 cannot be computed"):
            asyncio.run(admission.compute(model.lane, [1, 13], [1, 1]))
    assert "a bad input" in log.getvalue()


def test_a_worker_that_dies_fails_its_batch_and_is_started_again() -> None:
    model = Model()
    with admitting() as (admission, log):
        assert asyncio.run(outcome(admission, model.lane, [666, 1], [1, 1], False)) is NotComputedError
        assert "died" in admission.health
        with pytest.raises(NotComputedError, match="being started again"):
            asyncio.run(admission.compute(model.lane, [2], [1]))
        wait_for(lambda: not admission.health)
        assert asyncio.run(outcome(admission, model.lane, [3], [1], False)) == [6]
    assert [json.loads(line)["event"] for line in log.getvalue().splitlines()] == ["model_worker_died"]


def test_a_model_that_hangs_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.admission.STALL_SECONDS", 0.01)
    model = Model()
    with admitting(deadline_seconds=0.05) as (admission, _):
        model.open.clear()
        assert asyncio.run(outcome(admission, model.lane, [1], [1], False)) is NotComputedError
        assert "busy with one batch" in admission.health
        model.open.set()
        wait_for(lambda: not admission.health)


def test_a_wrong_number_of_results_is_an_error_of_the_model() -> None:
    with admitting() as (admission, _), pytest.raises(ComputeError):
        asyncio.run(admission.compute(Lane(lambda items: []), [1], [1]))


def test_what_waits_when_the_server_stops_is_refused() -> None:
    model = Model()

    async def ask(admission: Admission) -> list[object]:
        model.open.clear()
        calls = [asyncio.create_task(outcome(admission, model.lane, [i], [1], False)) for i in range(2)]
        await asyncio.to_thread(wait_for, lambda: bool(model.batches))
        stop = asyncio.create_task(asyncio.to_thread(admission.stop))
        await asyncio.sleep(0.02)
        model.open.set()
        await stop
        return await asyncio.gather(*calls)

    with admitting(batch_tokens=1, patient_batch_tokens=1) as (admission, _):
        assert asyncio.run(ask(admission)) == [[0], NotComputedError]
        assert asyncio.run(outcome(admission, model.lane, [3], [1], False)) is NotComputedError


def test_times_in_the_queue_and_in_the_model_are_told() -> None:
    model = Model()
    with admitting() as (admission, _):
        done: Done = asyncio.run(admission.compute(model.lane, [1, 2], [1, 1]))
        assert 0 <= done.queue_seconds < 10 and 0 <= done.compute_seconds < 10
        assert asyncio.run(admission.compute(model.lane, [], [])).results == []
    assert len(model.batches) == 1


@pytest.mark.parametrize(
    "limits",
    [
        {"batch_tokens": 0},
        {"patient_batch_tokens": 0},
        {"batch_tokens": 100, "queue_tokens": 99},
        {"deadline_seconds": 0},
        {"patient_deadline_seconds": float("nan")},
    ],
)
def test_limits_that_can_never_be_met_are_refused_at_start(limits: dict[str, float]) -> None:
    with pytest.raises(InputError, match=[*limits][-1]):
        AdmissionConfig(**limits)  # type: ignore[arg-type]  # ints and floats by name


def test_a_queue_that_cannot_hold_the_longest_text_is_refused() -> None:
    config = AdmissionConfig(batch_tokens=10, patient_batch_tokens=10, queue_tokens=500)
    config.check_longest(500)
    with pytest.raises(InputError, match="the model reads 512 tokens"):
        config.check_longest(512)
