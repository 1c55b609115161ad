from pathlib import Path

import pytest

from app.hidden_paths import hide_paths


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        ("store/generations/000003/index.faiss", "generations/000003/index.faiss"),
        ("store/generations", "generations"),
        ("elsewhere/ranker", "ranker"),
    ],
)
@pytest.mark.parametrize("text", ["{}: checksum differs", "[Errno 2] No such file: '{}'", "see {} and {}; mend it"])
def test_where_files_lie_is_left_out(tmp_path: Path, place: str, shown: str, text: str) -> None:
    assert hide_paths(text.replace("{}", f"{tmp_path}/{place}")) == text.replace("{}", shown)
    if shown.startswith("generations"):
        for relative in (place, f"../here/{place}"):
            assert hide_paths(text.replace("{}", relative)) == text.replace("{}", shown)


@pytest.mark.parametrize("before", ["file://", "sqlite:///", "sqlite+pysqlite:///"])
def test_of_a_url_of_this_machine_the_file_alone_is_left(tmp_path: Path, before: str) -> None:
    assert hide_paths(f"'{before}{tmp_path}/a%20b/jobs.db' is locked") == "'jobs.db' is locked"
    assert hide_paths(f"{before}{tmp_path}/store/generations/000003") == "generations/000003"


def test_paths_in_a_row_are_all_cut(tmp_path: Path) -> None:
    assert hide_paths(f"nothing in {tmp_path}/one:{tmp_path}/two") == "nothing in one:two"


@pytest.mark.parametrize(
    "message",
    [
        "there is no generation 4; GET /v1/generations lists them",
        "vectors need their space, as /v1/encode gave it",
        "http://127.0.0.1:8000/tmp/x answers",
        "https://huggingface.co/tmp/x answers",
        "queries × top_k is 3, the limit is 2",
        "either/or, 1/2, checkpoints/12 or generations/BEST",
    ],
)
def test_routes_and_other_words_stay(message: str) -> None:
    assert hide_paths(message) == message


@pytest.mark.timeout(30)
@pytest.mark.parametrize("word", ["@", "+", "a+", "~", "/+", "x/", "+/@"])
def test_a_long_word_costs_no_more_than_its_length(word: str) -> None:
    message = word * (300_000 // len(word))
    assert hide_paths(f"no passage {message}").startswith("no passage ")


def test_what_is_too_long_for_a_file_is_no_path() -> None:
    message = f"/{'a' * 300}/b: no such passage"
    assert hide_paths(message) == message
