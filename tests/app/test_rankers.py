import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app.indexing import rebuild
from app.opening import openers
from app.rankers import kept, named_ranker, own_ranker, required_ranker, saved_ranker
from app.training import run_training
from retriever.artifacts import SERVED, Artifact
from retriever.errors import CorruptError, InputError
from retriever.ranker import RankerConfig, load_ranker
from retriever.store import Store
from tests.app.command_line import Hone, opened, silent, write_run
from tests.stand_ins import write_tiny_data
from tests.tiny_ranker import write_tiny_ranker

QUERIES, PASSAGES = ["baka", "duku dula", "beki"], ["baka beki", "dula", "bola " * 90]


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_ranker(tmp_path_factory.mktemp("ranker"))


def with_ranker(store: Path, ranker: Path | None) -> Artifact:
    """Rebuild the index of ``store`` with ``ranker`` in it, whose random weights the gate is not to judge."""
    with saved_ranker(None if ranker is None else str(ranker)) as files:
        return rebuild(Store(store), {"precision": "fp32", "rerank_depth": 0}, silent, ranker=files)


def test_a_generation_holds_the_ranker_that_it_was_given_with_the_same_scores(indexed: Path, ranker: Path) -> None:
    generation = with_ranker(indexed, ranker)
    generation.verify()
    own, named = own_ranker(generation), named_ranker(str(ranker))
    assert own is not None
    np.testing.assert_array_equal(own.score(QUERIES, PASSAGES), named.score(QUERIES, PASSAGES))
    assert own.fingerprint == named.fingerprint
    assert generation.facts["ranker"] == load_ranker(RankerConfig(str(ranker))).facts()


def test_the_gate_asks_the_ranker_that_a_generation_holds(hone: Hone, tiny: Path, ranker: Path, tmp_path: Path) -> None:
    data = write_tiny_data(tmp_path / "data", passages=120, queries=120)
    made = ("index", data, "--model", tiny / "model", "--store", "here", "--precision", "fp32", "--ranker", ranker)
    answer = hone(*made, "--rerank-depth", 40)
    store = Store(tmp_path / "here")
    generation = store.generations.at(0)
    told = generation.facts["reranked"]
    assert (told["depth"], told["queries"], told["pairs"]) == (40, 30, 1200)
    assert told["before"] == pytest.approx(generation.facts["dev"]["nDCG@10"])
    assert told["nDCG@10"] < told["before"] - 0.3, "its weights are random"
    assert store.generations.pointed(SERVED) is None and "Not served: dev nDCG@10 reranked" in answer.out
    assert "hone promote 0 --force --store here serves it all the same" in answer.out
    assert "the gate lets none pass: `hone promote 0` says why" in hone("search", "baka", "--store", "here").complaint
    assert hone("promote", "0", "--force", "--store", "here").code == 0 and store.generations.pointed(SERVED) == 0
    assert "rerank_depth = 101" in hone("index", "--store", "here", "--rerank-depth", 101).complaint


def test_all_settings_of_a_named_ranker_come_along(indexed: Path, tmp_path: Path) -> None:
    folder = write_tiny_ranker(tmp_path / "two", num_labels=2, id2label={0: "no", 1: "yes"})
    where = r'several labels; name .*: 0 \(no\), 1 \(yes\)\. .* write {"label": NUMBER} into its hone\.json'
    with pytest.raises(InputError, match=where), saved_ranker(str(folder)):
        pass
    config = json.loads((folder / "config.json").read_text())
    activation = {"activation_fn": "torch.nn.modules.activation.Sigmoid"}
    (folder / "config.json").write_text(json.dumps({**config, "sentence_transformers": activation}))
    (folder / "hone.json").write_text('{"label": 1}')
    own = own_ranker(with_ranker(indexed, folder))
    assert own is not None and own.probable and own.fingerprint == named_ranker(str(folder)).fingerprint


def test_a_rebuild_keeps_the_ranker_that_is_served(indexed: Path, ranker: Path) -> None:
    given = with_ranker(indexed, ranker)
    again = with_ranker(indexed, None)
    assert again.number == given.number + 1 and again.facts["ranker"] == given.facts["ranker"]
    assert (again.path / "ranker/config.json").samefile(given.path / "ranker/config.json")


def test_a_ranker_that_is_not_the_manifests_is_refused(indexed: Path, ranker: Path) -> None:
    generation = with_ranker(indexed, ranker)
    facts = {**generation.facts, "ranker": {**generation.facts["ranker"], "weights_sha256": "another"}}
    with pytest.raises(CorruptError, match="its weights_sha256 is not that of the manifest"):
        own_ranker(replace(generation, manifest={**generation.manifest, "facts": facts}))
    settings = generation.path / "ranker/config_sentence_transformers.json"
    settings.write_text(settings.read_text().replace("Sigmoid", "Identity").replace('"prompts": {}', '"prompts": []'))
    (generation.path / "ranker/tokenizer.json").unlink()
    with pytest.raises(CorruptError, match="build it again"):
        own_ranker(generation)


def test_each_generation_of_a_training_holds_the_ranker_of_its_checkpoint(
    tiny: Path, ranker: Path, tmp_path: Path
) -> None:
    table = f'[ranker]\nname = "{ranker}"\nbatch_size = 4\nnum_negatives = 2\nwarmup_steps = 0\n'
    turns = "[phases]\nranker = 2\nretriever = 1\n"
    path = tmp_path / "run.toml"
    write_run(path, tiny / "data", tiny / "model", ("[negatives]", f"{table}{turns}[negatives]"))
    run_training(opened(path, tmp_path / "store"), path, "inline")
    store = Store(tmp_path / "store")
    made = [store.generations.at(number) for number in store.generations.numbers()]
    assert [one.facts["step"] for one in made] == [0, 3, 6]
    assert len({one.facts["ranker"]["weights_sha256"] for one in made}) == 3
    for one in made:
        assert one.facts["ranker"] == store.checkpoints.at(one.parents["checkpoint"]).facts["ranker"]
        assert own_ranker(one) is not None, "and it is the one of which the manifest tells"
    told = openers().ranker(made[-1])
    assert told is not None and told.score(QUERIES, PASSAGES).shape == (3,)


def test_where_there_is_no_ranker_one_error_says_what_to_do(indexed: Path, ranker: Path) -> None:
    generation = Store(indexed).generations.at(0)
    assert own_ranker(generation) is None
    with pytest.raises(InputError, match=r"generation 0 holds no ranker; --ranker FOLDER names one"):
        required_ranker(None, generation)
    with pytest.raises(InputError, match=r"there is no ranker; --ranker"):
        required_ranker(None, None)
    assert required_ranker(str(ranker), None).fingerprint == required_ranker(str(ranker), generation).fingerprint


def test_what_has_not_changed_stays_loaded(indexed: Path, ranker: Path, tmp_path: Path) -> None:
    bare = Store(indexed).generations.at(0)
    first, second = with_ranker(indexed, ranker), with_ranker(indexed, None)
    other = with_ranker(indexed, write_tiny_ranker(tmp_path / "other", num_hidden_layers=1))
    open_ranker = openers().ranker
    loaded = open_ranker(first)
    assert loaded is not None and open_ranker(second) is loaded
    assert open_ranker(other) is not loaded and open_ranker(bare) is None
    given = openers(tmp_path / "other").ranker
    stand_in = given(bare)
    assert stand_in is not None and given(first) is not stand_in and given(bare) is stand_in


def test_what_failed_to_open_is_tried_again(indexed: Path) -> None:
    generation = Store(indexed).generations.at(0)
    tries: list[int] = []

    def opener(_: Artifact) -> int:
        tries.append(1)
        if len(tries) == 1:
            raise CorruptError("torn")
        return len(tries)

    again = kept(opener, "model")
    with pytest.raises(CorruptError):
        again(generation)
    assert [again(generation), again(generation)] == [2, 2]
