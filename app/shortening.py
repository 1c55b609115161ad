"""Cuts texts to a number of a model's tokens, at the end of a word.

Does not know which texts, nor why.
"""

from collections.abc import Callable

from transformers import AutoTokenizer

from retriever.encoder import model_path


def shortener(model: str, tokens: int) -> Callable[[str], str]:
    """Return a function that cuts a text so that ``model``'s tokenizer makes at most ``tokens`` of it.

    Special tokens count. ``model`` is what [model] name takes; its tokenizer must be a fast one.
    """
    tokenizer = AutoTokenizer.from_pretrained(model_path(model))
    room = tokens - tokenizer.num_special_tokens_to_add()

    def shorten(text: str) -> str:
        encoded = tokenizer(  # verbose would warn of the length that is cut here
            text,
            add_special_tokens=False,
            truncation=False,
            padding=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        words = encoded.word_ids()
        if len(words) <= room:
            return text
        last = room
        while last > 1 and words[last] == words[last - 1]:
            last -= 1
        end: int = encoded["offset_mapping"][last - 1][1]
        return text[:end]

    return shorten
