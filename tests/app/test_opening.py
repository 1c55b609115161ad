import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.indexing import rebuild
from app.opening import CALIBRATION_PASSAGES, calibration_texts, encoder_opener, open_generation_encoder, openers
from indexer.factory import IndexConfig
from retriever.artifacts import Artifact
from retriever.data import Corpus
from retriever.inference import ModelEncoder
from retriever.protocols import FloatArray, Side
from retriever.store import Store
from tests.app.command_line import silent

FP32 = IndexConfig(engine="torch", precision="fp32")
TEXTS = ["baka beki", "duku"]


def generation(store: Path, number: int) -> Artifact:
    return Store(store).generations.at(number)


def test_the_same_weights_are_loaded_once(trained: Path) -> None:
    open_encoder = encoder_opener(FP32)
    store = Store(trained)
    first = open_encoder(store.checkpoints.at(1))
    assert open_encoder(store.generations.at(1)) is first, "a generation has the weights of its checkpoint"
    other = open_encoder(store.checkpoints.at(2))
    assert other is not first and other.fingerprints.space != first.fingerprints.space
    assert np.abs(other.encode_queries(TEXTS) - first.encode_queries(TEXTS)).max() > 1e-4


def test_the_same_weights_with_another_prompt_are_another_encoder(trained: Path) -> None:
    open_encoder = encoder_opener(FP32)
    first = open_encoder(generation(trained, 1))
    settings = trained / "generations/000001/model/hone.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "query_prompt": "duku "}))
    second = open_encoder(generation(trained, 1))
    assert second.fingerprints.query != first.fingerprints.query
    np.testing.assert_allclose(second.encode_queries(["baka"]), first.encode_queries(["duku baka"]), atol=1e-6)


def test_a_generation_is_asked_in_the_precision_of_its_vectors(indexed: Path) -> None:
    made = generation(indexed, 0)
    assert open_generation_encoder(made).fingerprints.as_facts().items() <= made.facts.items()
    facts = {**made.facts, "index_config": {**made.facts["index_config"], "precision": "bf16"}}
    coarse = open_generation_encoder(Artifact(made.kind, 0, made.path, {**made.manifest, "facts": facts}))
    expected = encoder_opener(IndexConfig(**facts["index_config"]))(made).fingerprints.query
    assert coarse.fingerprints.query == expected != made.facts["query_fingerprint"]


def test_a_server_keeps_its_encoder_over_a_rebuild(indexed: Path) -> None:
    """What it costs to open one again is memory for both, seconds, and the vectors of the queries asked lately."""
    open_encoder = openers().encoder
    first, made = open_encoder(generation(indexed, 0)), rebuild(Store(indexed), {}, silent)
    assert open_encoder(made) is first
    facts = {**made.facts, "index_config": {**made.facts["index_config"], "precision": "bf16"}}
    assert open_encoder(Artifact(made.kind, 1, made.path, {**made.manifest, "facts": facts})) is not first


def test_int8_is_calibrated_on_the_corpus_and_asked_without_it(indexed: Path) -> None:
    corpus, made = Corpus(Store(indexed).corpora.at(0)), generation(indexed, 0)
    coarse = encoder_opener(IndexConfig(precision="int8"), corpus)(made)
    assert coarse.computed_by == "openvino int8"
    facts = {**made.facts, "index_config": {**made.facts["index_config"], "engine": "auto", "precision": "int8"}}
    served = open_generation_encoder(Artifact(made.kind, 0, made.path, {**made.manifest, "facts": facts}))
    assert served.fingerprints.query == coarse.fingerprints.query
    assert served.fingerprints.space == coarse.fingerprints.space


def test_a_generation_made_for_queries_in_int8_is_asked_in_it_and_encodes_no_passage_anew(
    indexed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, encode = generation(indexed, 0), ModelEncoder.encode_tokens
    told: list[tuple[str, dict[str, Any]]] = []
    sides: set[str] = set()

    def noted(encoder: ModelEncoder, side: Side, *arguments: Any) -> FloatArray:
        sides.add(side)
        return encode(encoder, side, *arguments)

    monkeypatch.setattr(ModelEncoder, "encode_tokens", noted)
    changed = rebuild(Store(indexed), {"query_precision": "int8"}, lambda event, **fields: told.append((event, fields)))
    assert [fields["queries"] for event, fields in told if event == "engine"] == ["onnxruntime int8"]
    served = open_generation_encoder(changed)
    assert served.fingerprints.as_facts().items() <= changed.facts.items()
    assert changed.facts["passage_fingerprint"] == made.facts["passage_fingerprint"]
    assert changed.facts["query_fingerprint"] != made.facts["query_fingerprint"]
    assert sides == {"query"}


def test_calibration_takes_evenly_spread_passages(indexed: Path) -> None:
    corpus = Corpus(Store(indexed).corpora.at(0))
    texts = calibration_texts(corpus)
    assert texts == calibration_texts(corpus) and len(texts) == min(CALIBRATION_PASSAGES, len(corpus))
    assert (texts[0], texts[-1]) == (corpus.text(0), corpus.text(len(corpus) - 1))


def test_the_engine_is_told_once_with_its_reason(trained: Path) -> None:
    told: list[dict[str, object]] = []
    open_encoder = encoder_opener(FP32, report=lambda event, **fields: told.append({"event": event, **fields}))
    for number in (1, 2):
        open_encoder(generation(trained, number))
    (only,) = told
    assert (only["event"], only["engine"], only["precision"]) == ("engine", "torch", "fp32") and only["reason"]
