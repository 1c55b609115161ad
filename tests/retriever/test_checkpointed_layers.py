from pathlib import Path

import pytest
import torch

from retriever.encoder import DualEncoder, ModelConfig, create_encoder
from retriever.errors import InputError
from tests.tiny_ranker import write_tiny_ranker


def mpnet(folder: Path) -> DualEncoder:
    """Of a family whose layers transformers cannot compute again."""
    return create_encoder(ModelConfig(str(write_tiny_ranker(folder, "mpnet"))))


def test_a_model_that_transformers_cannot_train_so_is_named_with_the_key(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^\[train\] gradient_checkpointing: MPNetModel does not support .* Leave it"):
        mpnet(tmp_path).checkpoint_gradients()


def test_the_fast_path_asks_nothing_of_transformers(tmp_path: Path) -> None:
    model = mpnet(tmp_path)
    assert model.train_fast(torch.float32, checkpointing=True) == []
    model.checkpoint_gradients()
