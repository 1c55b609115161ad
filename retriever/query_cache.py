"""The vectors of the latest queries of one encoder, so that a query which is asked again is not encoded again.

Does not know encoders: it is handed the function that encodes, and lives and dies with the encoder behind it.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np

from retriever.protocols import FloatArray

SIZE = 4096
LONGEST = 1000
"""Characters from which a text is not kept: what a client can send must not fill the memory."""


class QueryCache:
    """Keeps the ``size`` queries that were asked last; for one thread at a time."""

    def __init__(self, size: int = SIZE) -> None:
        self._size = size
        self._kept: OrderedDict[str, FloatArray] = OrderedDict()

    def encode(self, texts: Sequence[str], encode: Callable[[Sequence[str]], FloatArray]) -> FloatArray:
        """Return float32 [len(texts), dim]: what is kept, and what ``encode`` makes of the others, each text once."""
        known = {text: self._kept[text] for text in dict.fromkeys(texts) if text in self._kept}
        missing = [text for text in dict.fromkeys(texts) if text not in known]
        if len(missing) == len(texts):
            vectors = encode(texts)
            self._keep(dict(zip(missing, vectors, strict=True)))
            return vectors
        fresh = dict(zip(missing, encode(missing), strict=True)) if missing else {}
        self._keep({**known, **fresh})
        return np.stack([known[text] if text in known else fresh[text] for text in texts])

    def _keep(self, vectors: dict[str, FloatArray]) -> None:
        for text, vector in vectors.items():
            if len(text) < LONGEST:
                self._kept[text] = vector.copy()
                self._kept.move_to_end(text)
        while len(self._kept) > self._size:
            self._kept.popitem(last=False)
