from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from retriever.errors import CorruptError
from retriever.negatives import (
    NegativeSet,
    Verdict,
    create_negative_set,
    open_batches,
    open_negative_set,
    write_batches,
)

NAMES = [field.name for field in fields(NegativeSet)]


def test_a_new_set_is_all_padding_and_nothing_is_eligible(tmp_path: Path) -> None:
    create_negative_set(tmp_path, queries=3, depth=4, positives=2).flush()
    found = open_negative_set(tmp_path)
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(NAMES)
    assert found.queries.tolist() == [0, 1, 2]
    assert found.passages.shape == (3, 4) and (found.passages == -1).all()
    assert found.positives.shape == (3, 2) and (found.positives == -1).all()
    assert not (found.verdicts == Verdict.ELIGIBLE).any()
    assert not found.dropped.any() and (found.mined_from == -1).all()


def test_the_types_are_those_of_the_contract(tmp_path: Path) -> None:
    created = create_negative_set(tmp_path, queries=2, depth=3, positives=1)
    types = {name: str(getattr(created, name).dtype) for name in NAMES}
    assert types == {
        "queries": "int32",
        "passages": "int32",
        "scores": "float32",
        "sources": "uint8",
        "verdicts": "uint8",
        "positives": "int32",
        "positive_scores": "float32",
        "dropped": "bool",
        "mined_from": "int32",
    }
    assert [verdict.value for verdict in Verdict] == [0, 1, 2, 3, 4, 5]


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    created = create_negative_set(tmp_path, queries=5, depth=7, positives=2)
    generator = np.random.default_rng(3)
    for name in NAMES:
        array = getattr(created, name)
        array[...] = generator.integers(0, 2, array.shape).astype(array.dtype)
    created.flush()
    found = open_negative_set(tmp_path)
    for name in NAMES:
        np.testing.assert_array_equal(getattr(found, name), getattr(created, name))


def test_an_opened_set_cannot_be_changed(tmp_path: Path) -> None:
    create_negative_set(tmp_path, queries=2, depth=3, positives=1).flush()
    found = open_negative_set(tmp_path)
    for name in NAMES:
        with pytest.raises(ValueError, match="read-only"):
            getattr(found, name)[...] = 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("keep", [None, 0, 5, 40, -1], ids=["absent", "empty", "magic", "header", "last byte"])
def test_a_file_that_is_absent_or_torn_is_named(tmp_path: Path, name: str, keep: int | None) -> None:
    create_negative_set(tmp_path, queries=4, depth=3, positives=1).flush()
    path = tmp_path / f"{name}.npy"
    data = path.read_bytes()
    path.unlink()
    if keep is not None:
        path.write_bytes(data[:keep])
    with pytest.raises(CorruptError, match=f"{name}.npy"):
        open_negative_set(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_another_shape_or_type_is_refused(tmp_path: Path, name: str) -> None:
    whole = getattr(create_negative_set(tmp_path, queries=4, depth=3, positives=2), name).copy()
    wrong = [whole[:-1], whole.reshape(-1)[0], whole[None], whole.astype(np.float64), whole.astype(">i8")]
    for array in wrong:
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(CorruptError, match=r"\.npy"):
            open_negative_set(tmp_path)
    np.save(tmp_path / f"{name}.npy", whole)
    open_negative_set(tmp_path)


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    create_negative_set(tmp_path, queries=1, depth=1, positives=1).flush()
    np.save(tmp_path / "queries.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(CorruptError, match=r"queries\.npy: unreadable"):
        open_negative_set(tmp_path)


def test_a_batch_plan_is_optional_and_checked(tmp_path: Path) -> None:
    assert open_batches(tmp_path) is None
    plan = np.array([[2, 0], [1, 2]], np.int32)
    write_batches(tmp_path, plan)
    np.testing.assert_array_equal(open_batches(tmp_path), plan)
    np.save(tmp_path / "batches.npy", plan.astype(np.int64))
    with pytest.raises(CorruptError, match=r"batches\.npy: int64 \(2, 2\) where int32"):
        open_batches(tmp_path)
    (tmp_path / "batches.npy").write_bytes(b"torn")
    with pytest.raises(CorruptError, match=r"batches\.npy: unreadable"):
        open_batches(tmp_path)
