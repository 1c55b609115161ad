from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from app import whitened_export
from app.opening import open_generation_encoder
from app.whitened_export import export_whitened
from indexer.shards import open_vectors
from indexer.whitening import fit_whitening
from retriever.artifacts import Artifact
from retriever.encoder import ModelConfig, create_encoder
from retriever.errors import InputError
from retriever.store import Store
from tests.app.command_line import Hone
from tests.stand_ins import WORDS

TEXTS = ["baka beki bodu", "duku", *WORDS[:30]]


@pytest.mark.parametrize("dimensions", [None, 7])
def test_sentence_transformers_gives_our_whitened_vectors(
    trained: Path, tmp_path: Path, dimensions: int | None
) -> None:
    store = Store(trained)
    generation = store.generations.at(2)
    note, told = export_whitened(store, generation, tmp_path / "out", dimensions)
    assert note is None and told["dimensions"] == (dimensions or 31), "a fresh layer norm leaves no sum"
    theirs = SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(TEXTS)
    whitening = fit_whitening(open_vectors(generation.path / "vectors"), dimensions, normalize=True)
    ours = whitening(open_generation_encoder(generation).encode_passages(TEXTS))
    np.testing.assert_allclose(theirs, ours, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(theirs, axis=1), 1, atol=1e-5)


def test_before_is_the_generation_s_own_figure(trained: Path, tmp_path: Path) -> None:
    """Its vectors are float32 and its index exact."""
    generation = Store(trained).generations.at(2)
    _, told = export_whitened(Store(trained), generation, tmp_path / "out", None)
    assert told["before"] == pytest.approx(generation.facts["dev"]["nDCG@10"], abs=1e-6)
    assert 0 <= told["after"] <= 1 and told["queries"] == 10


def test_a_model_appears_only_once_it_is_whitened(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(whitened_export, "save_file", full)
    generation = Store(trained).generations.at(2)
    with pytest.raises(OSError, match="No space"):
        export_whitened(Store(trained), generation, tmp_path / "new" / "out", None)
    assert [*(tmp_path / "new").iterdir()] == []
    monkeypatch.undo()
    (tmp_path / "new" / "out").mkdir()
    with pytest.raises(InputError, match="exists already"):
        export_whitened(Store(trained), generation, tmp_path / "new" / "out", None)


def test_towers_apart_and_vectors_of_any_length(hone: Hone, tiny: Path, tmp_path: Path) -> None:
    model = create_encoder(ModelConfig(str(tiny / "model"), tied=False, normalize=False))
    model.save(tmp_path / "apart")
    hone("index", tiny / "data", "--model", "apart", "--precision", "fp32", "--store", "store")
    told = hone("export", "model", "out", "--store", "store", "--whiten", "--dimensions", 4, "--json").json
    assert told["dimensions"] == 4
    generation = Store(tmp_path / "store").generations.at(0)
    whitening = fit_whitening(open_vectors(generation.path / "vectors"), 4, normalize=False)
    ours = whitening(open_generation_encoder(generation).encode_passages(TEXTS))
    for side in ("query", "passage"):
        theirs = SentenceTransformer(str(tmp_path / "out" / side), device="cpu").encode(TEXTS)
        np.testing.assert_allclose(theirs, ours, atol=1e-4)


def test_figures_are_shown_and_what_does_not_go_is_refused(hone: Hone, trained: Path, tmp_path: Path) -> None:
    out = hone("export", "model", "out", "--whiten").out
    assert "Whitened: 31 dimensions" in out and "nDCG@10 of 10 dev queries: " in out and " flipped" in out
    assert "--dimensions goes with --whiten" in hone("export", "model", "two", "--dimensions", 4).complaint
    assert (
        "--dimensions 99: the 60 vectors vary in 31"
        in hone("export", "model", "two", "--whiten", "--dimensions", 99).complaint
    )
    generation = Store(trained).generations.at(2)
    facts = {**generation.facts, "partial": {"method": "partial"}}
    partial = Artifact("generations", 2, generation.path, {**generation.manifest, "facts": facts})
    with pytest.raises(InputError, match="generation 2 is partial"):
        export_whitened(Store(trained), partial, tmp_path / "two", None)
    assert not Path("two").exists()
