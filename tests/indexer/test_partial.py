import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from indexer import partial
from indexer.builder import BuildInputs, build_generation
from indexer.drift import Drift, fit_drift
from indexer.encode import encode_corpus
from indexer.partial import Partial, encode_partially
from indexer.shards import Vectors, drop_unused, open_vectors
from retriever.artifacts import BEST, CURRENT, SERVED, Artifact
from retriever.data import Corpus
from retriever.errors import StoreError
from retriever.protocols import FloatArray, silent
from retriever.store import Store
from tests.indexer.planted import Cancelled, FaultyEncoder, QuickEncoder, build_inputs, plant_checkpoint
from tests.stand_ins import WORDS

SHARE = 0.25


def no_warning(message: str) -> None:
    raise AssertionError(message)


def whole(vectors: Vectors) -> FloatArray:
    return vectors.gather(np.arange(len(vectors)))


def publish(store: Store, checkpoint: Artifact, inputs: BuildInputs) -> Artifact:
    return build_generation(store, checkpoint, inputs, lambda *_: None, no_warning)


def parent(store: Store, data: Path, corpus: Corpus) -> Artifact:
    """Publish the full generation of step 0."""
    return publish(store, plant_checkpoint(store), build_inputs(data, corpus))


def part(of: Artifact, turn: int = 0) -> Partial:
    return Partial(of, turn, SHARE, seed=3)


def test_due_rows_are_as_many_as_asked_for_and_all_have_their_turn(tiny: tuple[Store, Corpus], tiny_data: Path) -> None:
    first = parent(tiny[0], tiny_data, tiny[1])
    turns = [part(first, turn).rows_due(60) for turn in range(4)]
    assert [len({*rows.tolist()}) for rows in turns] == [15] * 4
    assert {*np.concatenate(turns).tolist()} == {*range(60)}
    np.testing.assert_array_equal(turns[2], part(first, 2).rows_due(60))
    assert turns[0].tolist() != replace(part(first), seed=4).rows_due(60).tolist()
    assert len(replace(part(first), share=0.001).rows_due(60)) == 1


def test_due_rows_are_encoded_and_the_others_mapped(wide: tuple[Store, Corpus], wide_data: Path) -> None:
    store, corpus = wide
    first = parent(store, wide_data, corpus)
    encoder = QuickEncoder(seed=1)
    vectors, facts = encode_partially(encoder, corpus, part(first), store.embeddings, silent, no_warning)
    due = part(first).rows_due(len(corpus))
    assert encoder.seen == corpus.texts(np.sort(due)), "no other passage is encoded"
    exact = whole(encode_corpus(QuickEncoder(seed=1), corpus, store.embeddings, silent, no_warning))
    stale, found = whole(open_vectors(first.path / "vectors")), whole(vectors)
    np.testing.assert_allclose(found[due], exact[due], atol=1e-6)
    others = np.setdiff1d(np.arange(len(corpus)), due)
    np.testing.assert_array_equal(found[others], fit_drift(stale[due], found[due])(stale[others]))
    cosines = [(one[others] * exact[others]).sum(1).mean() for one in (stale, found)]
    assert cosines[0] < cosines[1]
    assert facts["cosine_before"] == pytest.approx(cosines[0], abs=0.05)
    assert facts["cosine_mapped"] == pytest.approx(cosines[1], abs=0.05)
    counts = {key: facts[key] for key in ("parent", "turn", "encoded_rows", "mapped_rows")}
    assert counts == {"parent": 0, "turn": 0, "encoded_rows": 2250, "mapped_rows": 6750}


def test_the_map_is_fitted_on_a_bounded_sample(
    wide: tuple[Store, Corpus], wide_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, corpus = wide
    first, fitted = parent(store, wide_data, corpus), list[FloatArray]()

    def fit(before: FloatArray, after: FloatArray) -> Drift:
        fitted.extend([before, after])
        return fit_drift(before, after)

    monkeypatch.setattr(partial, "FITTED_ROWS", 1000)
    monkeypatch.setattr(partial, "fit_drift", fit)
    vectors, _ = encode_partially(QuickEncoder(seed=1), corpus, part(first), store.embeddings, silent, no_warning)
    sample = part(first).rows_due(len(corpus))[:1000]
    np.testing.assert_array_equal(fitted[0], open_vectors(first.path / "vectors").gather(sample))
    np.testing.assert_array_equal(fitted[1], vectors.gather(sample))


def test_mapped_vectors_never_stand_where_encoded_ones_belong(tiny: tuple[Store, Corpus], tiny_data: Path) -> None:
    store, corpus = tiny
    first = parent(store, tiny_data, corpus)
    checkpoint = plant_checkpoint(store, 5, 1)
    mapped = publish(store, checkpoint, replace(build_inputs(tiny_data, corpus), partial=part(first)))
    full = publish(store, checkpoint, build_inputs(tiny_data, corpus))
    exact = QuickEncoder(seed=1).encode_passages(corpus.texts(range(60)))
    np.testing.assert_array_equal(whole(open_vectors(full.path / "vectors")), exact)
    prints = [one.facts["passage_fingerprint"] for one in (first, mapped, full)]
    assert len({*prints}) == 3 and prints[1].startswith("partial-")
    assert mapped.facts["space"] == full.facts["space"]
    others = [replace(part(first), turn=1), replace(part(first), share=0.5), replace(part(first), seed=4), part(mapped)]
    assert len({one.fingerprint("p") for one in (part(first), *others)}) == 5
    assert part(first).fingerprint("p") != part(first).fingerprint("q")


def test_a_partial_generation_says_so_and_is_neither_served_nor_best(
    tiny: tuple[Store, Corpus], tiny_data: Path
) -> None:
    store, corpus = tiny
    first = parent(store, tiny_data, corpus)
    inputs = replace(build_inputs(tiny_data, corpus), partial=part(first))
    second = publish(store, plant_checkpoint(store, 5, 1), inputs)
    second.verify()
    assert second.parents == {"checkpoint": 1, "corpus": corpus.number, "generation": 0}
    assert second.facts["partial"]["encoded_rows"] == 15 and second.facts["partial"]["mapped_rows"] == 45
    assert (second.facts["dev"], second.facts["dev_queries"], second.facts["dev_sha256"]) == ({}, 0, None)
    assert "partial" not in first.facts
    pointers = {name: store.generations.pointed(name) for name in (CURRENT, SERVED, BEST, "JUDGED")}
    assert pointers == {CURRENT: 1, SERVED: 0, BEST: 0, "JUDGED": 1}


def test_its_shards_stay_while_it_does(tiny: tuple[Store, Corpus], tiny_data: Path) -> None:
    store, corpus = tiny
    first = parent(store, tiny_data, corpus)
    second = publish(
        store, plant_checkpoint(store, 5, 1), replace(build_inputs(tiny_data, corpus), partial=part(first))
    )
    assert drop_unused(store) == []
    store.generations.remove(second.number)
    assert drop_unused(store) == [second.facts["passage_fingerprint"]]


def test_a_cancelled_partial_encoding_goes_on_to_the_same_bytes(
    wide: tuple[Store, Corpus], wide_data: Path, tmp_path: Path
) -> None:
    store, corpus = wide
    half = replace(part(parent(store, wide_data, corpus)), share=0.6)
    undisturbed, _ = encode_partially(QuickEncoder(seed=1), corpus, half, tmp_path / "other", silent, no_warning)

    def cancel(done: int, total: int) -> None:
        if done > 4096:
            raise Cancelled

    with pytest.raises(Cancelled):
        encode_partially(QuickEncoder(seed=1), corpus, half, store.embeddings, cancel, no_warning)
    again = QuickEncoder(seed=1)
    resumed, _ = encode_partially(again, corpus, half, store.embeddings, silent, no_warning)
    assert again.encoded_passages == 5400 - 4096
    assert [path.read_bytes() for path in resumed.paths] == [path.read_bytes() for path in undisturbed.paths]
    resumed.paths[1].write_bytes(b"torn")
    said: list[str] = []
    mended, _ = encode_partially(again, corpus, half, store.embeddings, silent, said.append)
    assert again.encoded_passages == 5400 - 4096 and len(said) == 1 and str(resumed.paths[1]) in said[0]
    assert [path.read_bytes() for path in mended.paths] == [path.read_bytes() for path in undisturbed.paths]


def test_an_unusable_vector_is_refused_by_name(tiny: tuple[Store, Corpus], tiny_data: Path) -> None:
    store, corpus = tiny
    due = part(parent(store, tiny_data, corpus))
    wrong = [row for row in np.sort(due.rows_due(60)) if WORDS[0] in corpus.text(int(row)).split()]
    assert wrong
    with pytest.raises(StoreError, match=f"'p{wrong[0]}' .*not finite .{len(wrong)} of 15"):
        encode_partially(FaultyEncoder(WORDS[0], np.nan), corpus, due, store.embeddings, silent, no_warning)


def test_partial_generations_follow_each_other(tiny: tuple[Store, Corpus], tiny_data: Path) -> None:
    store, corpus = tiny
    newest = parent(store, tiny_data, corpus)
    for turn in range(3):
        inputs = replace(build_inputs(tiny_data, corpus), partial=part(newest, turn))
        newest = publish(store, plant_checkpoint(store, turn + 1, turn + 1), inputs)
    assert json.loads(json.dumps(newest.facts["partial"]))["turn"] == 2
    assert store.generations.pointed(SERVED) == 0


def plant_set(store: Store) -> Artifact:
    with store.negatives.stage({}) as draft:
        (draft.path / "passages.npy").write_text("pools")
    return store.negatives.at(draft.number)


def test_the_passages_of_pools_are_encoded_and_the_others_keep_their_vectors(
    tiny: tuple[Store, Corpus], tiny_data: Path
) -> None:
    store, corpus = tiny
    first, held = parent(store, tiny_data, corpus), np.array([3, 17, 18, 59], np.int32)
    pools = plant_set(store)
    inputs = replace(build_inputs(tiny_data, corpus), partial=replace(part(first), pools=(pools, held)))
    second = publish(store, plant_checkpoint(store, 5, 1), inputs)
    assert second.parents == {"checkpoint": 1, "corpus": corpus.number, "generation": 0, "negatives": pools.number}
    assert second.facts["partial"] == {"method": "rescore", "parent": 0, "turn": 0, "encoded_rows": 4, "kept_rows": 56}
    found, stale = (whole(open_vectors(one.path / "vectors")) for one in (second, first))
    others = np.setdiff1d(np.arange(60), held)
    np.testing.assert_array_equal(found[others], stale[others])
    np.testing.assert_allclose(found[held], QuickEncoder(seed=1).encode_passages(corpus.texts(held)), atol=1e-6)
    assert store.generations.pointed(SERVED) == 0
    prints = [replace(part(first), pools=(pools, rows)).fingerprint("p") for rows in (held, held[1:])]
    assert len({*prints, part(first).fingerprint("p")}) == 3
