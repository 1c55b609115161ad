import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from app.opening import encoder_opener, open_generation_encoder
from indexer.builder import IndexConfig
from retriever.artifacts import Artifact
from retriever.store import Store

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
    expected = encoder_opener(replace(FP32, precision="bf16"))(made).fingerprints.query
    assert coarse.fingerprints.query == expected != made.facts["query_fingerprint"]
