import logging

import pytest
from transformers import AutoTokenizer

from app.shortening import shortener
from retriever.encoder import model_path

CODE = "def unbelievably_long_function_name(argument):\n    return reticulated_splines[argument] * 3.14159265358979\n"


@pytest.mark.parametrize("tokens", [4, 7, 10, 16, 23])
def test_a_cut_text_fits_and_is_a_prefix_that_ends_with_a_word(tokens: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path("minilm"))
    cut = shortener("minilm", tokens)(CODE)
    assert CODE.startswith(cut) and len(cut) < len(CODE)
    assert len(tokenizer(cut)["input_ids"]) <= tokens
    whole = tokenizer(CODE, add_special_tokens=False)["input_ids"]
    kept = tokenizer(cut, add_special_tokens=False)["input_ids"]
    assert whole[: len(kept)] == kept, "the rest of a word would be read as another word"


def test_a_text_that_fits_stays_as_it_is() -> None:
    assert shortener("minilm", 96)(CODE) == CODE


def test_a_text_that_is_cut_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """Transformers says of a text beyond the model's length that it "will result in indexing errors"."""
    logger = logging.getLogger("transformers")  # which passes nothing on to the root
    logger.addHandler(caplog.handler)
    try:
        shortener("minilm", 96)(CODE * 40)
    finally:
        logger.removeHandler(caplog.handler)
    assert not caplog.messages
