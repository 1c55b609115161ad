from pathlib import Path

import pytest

from app.found_model import find_model
from retriever.errors import CorruptError, InputError
from retriever.store import Store
from tests.app.served import damage


def test_a_model_is_called_as_it_comes_to_mind(trained: Path, tiny: Path) -> None:
    store = Store(trained)
    third = find_model(trained, "2")
    assert third.artifact == store.generations.at(2) and third.place == str(third.artifact.path / "model")
    assert find_model(trained, "generations/2") == third and third.name == "generations/2"
    store.checkpoints.point("MINE", 1)
    checkpoint = find_model(trained, "checkpoints/MINE")
    assert checkpoint.artifact == store.checkpoints.at(1) and checkpoint.name == "checkpoints/1"
    assert find_model(trained, str(tiny / "model")).place == str(tiny / "model")
    assert find_model(trained, str(trained / "generations/000002")).place == third.place
    hub = find_model(trained / "no-store-needed", "sentence-transformers/all-MiniLM-L6-v2")
    assert (hub.place, hub.artifact) == ("sentence-transformers/all-MiniLM-L6-v2", None)


def test_what_is_not_there_or_damaged(trained: Path) -> None:
    with pytest.raises(InputError, match="nothing is named NONE; there are BASELINE"):
        find_model(trained, "NONE")
    damage(trained / "generations/000002/model/model.safetensors")
    with pytest.raises(CorruptError, match=r"model\.safetensors"):
        find_model(trained, "2")
