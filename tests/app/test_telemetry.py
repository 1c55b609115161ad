import io
import json
import logging
import warnings
from collections.abc import Iterator

import pytest

from app.telemetry import Telemetry, json_log, log_libraries


@pytest.fixture
def chatty(own_logging: None) -> Iterator[logging.Logger]:
    """The logger of a library that prints by a handler of its own."""
    logger = logging.getLogger("chatty")
    logger.propagate = False
    logger.addHandler(logging.StreamHandler())
    yield logger
    logger.handlers.clear()


def test_what_libraries_say_is_json_too(chatty: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    log_libraries(stream)
    chatty.info("quiet")
    chatty.log(35, "a level of its own")
    chatty.warning("%s and %s", "one")
    chatty.warning("two\nlines of %s", "text")
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("deprecated", stacklevel=1)
    try:
        raise ValueError("no good")
    except ValueError:
        chatty.exception("failed")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["library"], line["level"]) for line in lines] == [
        ("chatty", "warning"),
        ("chatty", "warning"),
        ("chatty", "warning"),
        ("uvicorn.error", "warning"),
        ("py.warnings", "warning"),
        ("chatty", "error"),
    ]
    assert lines[2]["said"] == "two\nlines of text" and "ValueError: no good" in lines[5]["exception"]
    assert lines[1]["said"] == "%s and %s" and "TypeError" in lines[1]["exception"], "what said it goes on"
    assert capsys.readouterr().err == ""


def test_the_log_is_one_json_object_a_line() -> None:
    stream = io.StringIO()
    log = json_log(stream)
    log.info("swapped", serving=3)
    try:
        raise ValueError("no good")
    except ValueError:
        log.exception("failed", text="line\nbreak")
    swapped, failed = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (swapped["event"], swapped["level"], swapped["serving"]) == ("swapped", "info", 3)
    assert swapped["timestamp"].endswith("Z")
    assert "ValueError: no good" in failed["exception"] and failed["text"] == "line\nbreak"


def test_a_traceback_in_the_log_shows_no_variables() -> None:
    stream = io.StringIO()
    secret = "the text " + "of a query"
    try:
        _fail(secret)
    except ValueError:
        json_log(stream).exception("failed")
    assert "_fail" in stream.getvalue() and secret not in stream.getvalue()


def _fail(text: str) -> None:
    raise ValueError(len(text))


def test_two_servers_count_apart() -> None:
    first, second = Telemetry(io.StringIO()), Telemetry(io.StringIO())
    first.count_swap("loaded")
    assert first.registry.get_sample_value("hone_swaps_total", {"result": "loaded"}) == 1
    assert second.registry.get_sample_value("hone_swaps_total", {"result": "loaded"}) == 0


def test_gauges_are_read_at_each_scrape() -> None:
    telemetry = Telemetry(io.StringIO())
    values, states = [float("nan"), 5.0], [{"running": 1}, {"running": 0, "done": 1}]
    telemetry.watch("hone_generation_number", "Number.", lambda: values.pop(0))
    telemetry.watch_each("hone_jobs", "Jobs.", "state", lambda: states.pop(0))
    first, second = telemetry.exposition().decode(), telemetry.exposition().decode()
    assert "hone_generation_number NaN" in first and 'hone_jobs{state="running"} 1.0' in first
    assert "hone_generation_number 5.0" in second and 'hone_jobs{state="done"} 1.0' in second
