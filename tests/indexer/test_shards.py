import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from indexer.shards import Vectors, drop_unused, is_intact, link_vectors, open_vectors, shard_path, write_shard
from retriever.data import Corpus
from retriever.errors import BusyError, CorruptError
from retriever.protocols import FloatArray
from retriever.store import Store
from tests.indexer.planted import plant_vectors, unit_rows

MATRICES = st.tuples(st.integers(1, 40), st.integers(1, 5)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.floats(width=32, allow_nan=False, allow_infinity=False))
)


@settings(max_examples=25, deadline=None)
@given(matrix=MATRICES, block_rows=st.integers(1, 20), data=st.data())
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, matrix: FloatArray, block_rows: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    paths = [shard_path(folder, f"c0-{block}") for block in range(-(-len(matrix) // block_rows))]
    for block, path in enumerate(paths):
        write_shard(path, matrix[block * block_rows : (block + 1) * block_rows])
    vectors = Vectors(paths)
    assert (len(vectors), vectors.dimensions) == matrix.shape
    firsts, blocks = zip(*vectors.blocks(), strict=True)
    assert firsts == tuple(range(0, len(matrix), block_rows))
    np.testing.assert_array_equal(np.concatenate(blocks), matrix)
    rows = np.array(data.draw(st.lists(st.integers(0, len(matrix) - 1))), np.int32)
    np.testing.assert_array_equal(vectors.gather(rows), matrix[rows])


def test_rows_outside_and_pads_are_refused(tmp_path: Path) -> None:
    vectors = plant_vectors(tmp_path, unit_rows(10, 4), block_rows=4)
    for outside in (-1, 10):
        with pytest.raises(IndexError, match="0 to 9"):
            vectors.gather(np.array([3, outside], np.int32))


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    vectors = plant_vectors(tmp_path, unit_rows(60, 4), block_rows=2)
    vectors.gather(np.arange(60))
    assert sum(len(block) for _, block in vectors.blocks()) == 60
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (unit_rows(3, 4), "3 x 4 where 4 x 4"),  # too few rows before the last shard
        (unit_rows(5, 4), "5 x 4"),
        (unit_rows(4, 3), "4 x 3"),
        (unit_rows(4, 4).astype(np.float64), "float64"),
        (np.zeros(4, np.float32), "float32"),
    ],
)
def test_shards_that_make_no_matrix_are_refused(tmp_path: Path, second: FloatArray, message: str) -> None:
    paths = [tmp_path / name for name in ("0.npy", "1.npy", "2.npy")]
    for path, matrix in zip(paths, (unit_rows(4, 4), second, unit_rows(4, 4)), strict=True):
        np.save(path, matrix)
    with pytest.raises(CorruptError, match=rf"1\.npy: .*{message}"):
        Vectors(paths)


def test_unreadable_and_absent_shards_are_refused(tmp_path: Path) -> None:
    (tmp_path / "0.npy").write_bytes(b"\x93NUMPY torn")
    with pytest.raises(CorruptError, match=r"0\.npy: unreadable"):
        Vectors([tmp_path / "0.npy"])
    with pytest.raises(CorruptError, match=r"1\.npy: gone"):
        Vectors([tmp_path / "1.npy"])
    with pytest.raises(CorruptError, match="no shards"):
        Vectors([])


def test_a_finished_shard_is_intact_and_an_unfinished_one_silently_is_not(tmp_path: Path) -> None:
    path, said = tmp_path / "c0-00000.npy", list[str]()
    assert not is_intact(path, (4, 3), said.append)
    np.save(path, unit_rows(4, 3))
    assert not is_intact(path, (4, 3), said.append)
    write_shard(path, unit_rows(4, 3))
    assert is_intact(path, (4, 3), said.append)
    assert said == []


def test_an_altered_shard_is_said(tmp_path: Path) -> None:
    path = tmp_path / "c0-00000.npy"
    write_shard(path, unit_rows(4, 3))
    sound = path.read_bytes()
    flipped = bytearray(sound)
    flipped[-5] ^= 1
    for altered in (bytes(flipped), sound[:-4], b""):
        path.write_bytes(altered)
        said: list[str] = []
        assert not is_intact(path, (4, 3), said.append)
        assert len(said) == 1 and str(path) in said[0] and "encoded anew" in said[0]
    path.write_bytes(sound)
    assert not is_intact(path, (4, 2), said.append)
    assert "(4, 3) where (4, 2)" in said[-1]
    path.unlink()
    assert not is_intact(path, (4, 3), said.append)


@pytest.mark.parametrize("links", [True, False])
def test_a_generation_shares_the_shards_or_copies_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError("another filesystem")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    vectors = plant_vectors(tmp_path / "cache", unit_rows(10, 4), block_rows=4)
    link_vectors(vectors, tmp_path / "vectors")
    linked = open_vectors(tmp_path / "vectors")
    assert [path.name for path in linked.paths] == ["00000.npy", "00001.npy", "00002.npy"]
    assert linked.paths[0].samefile(vectors.paths[0]) == links
    np.testing.assert_array_equal(linked.gather(np.arange(10)), unit_rows(10, 4))


def test_a_missing_shard_never_shifts_rows(tmp_path: Path) -> None:
    plant_vectors(tmp_path, unit_rows(12, 4), block_rows=4)
    (tmp_path / "00001.npy").unlink()
    with pytest.raises(CorruptError, match=r"00001\.npy is missing"):
        open_vectors(tmp_path)
    with pytest.raises(CorruptError, match="incomplete"):
        open_vectors(tmp_path / "nothing")


def test_shards_live_as_long_as_a_generation_names_them(tiny: tuple[Store, Corpus]) -> None:
    store, _ = tiny
    for name in ("used", "unused"):
        folder = store.embeddings / name
        folder.mkdir()
        write_shard(shard_path(folder, "c0"), unit_rows(4, 3))
    fresh, stale = store.embeddings / "used" / ".tmp-fresh", store.embeddings / "used" / ".tmp-stale"
    for leftover in (fresh, stale):
        leftover.touch()
    os.utime(stale, (0, 0))
    (store.embeddings / ".tmp-half-removed").mkdir()
    with store.generations.stage(parents={}) as draft:
        draft.facts.update(passage_fingerprint="used", query_fingerprint="asked")
    (store.embeddings / "asked").mkdir()
    assert drop_unused(store) == ["unused"]
    assert {path.name for path in store.embeddings.iterdir()} == {"used", "asked"}
    assert fresh.exists() and not stale.exists()
    (store.generations.path(0) / "manifest.json").write_text("{}")
    assert drop_unused(store) == ["asked", "used"]


def test_shards_are_not_dropped_under_a_running_build(tiny: tuple[Store, Corpus]) -> None:
    store, _ = tiny
    (store.embeddings / "being-encoded").mkdir()
    with store.generations.writer(), pytest.raises(BusyError):
        drop_unused(Store(store.root))
    assert (store.embeddings / "being-encoded").exists()
