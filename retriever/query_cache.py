"""The vectors of the latest queries of one encoder, so that a query which is asked again is not encoded again.

Does not know encoders: it lives and dies with the encoder that its vectors come from.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from threading import Lock

from retriever.protocols import FloatArray

SIZE = 4096
LONGEST = 1000
"""Characters from which a text is not kept: what a client can send must not fill the memory."""


class QueryCache:
    """Keeps the ``size`` queries that were asked last; for many threads."""

    def __init__(self, size: int = SIZE) -> None:
        self._size = size
        self._kept: OrderedDict[str, FloatArray] = OrderedDict()
        self._turn = Lock()

    def known(self, texts: Iterable[str]) -> dict[str, FloatArray]:
        """Return the vectors float32 [dim] of those ``texts`` that are kept; they now count as asked last."""
        with self._turn:
            found = {text: self._kept[text] for text in texts if text in self._kept}
            for text in found:
                self._kept.move_to_end(text)
        return found

    def keep(self, vectors: Mapping[str, FloatArray]) -> None:
        """Keep ``vectors`` by text, copied, in place of those that were asked longest ago."""
        with self._turn:
            for text, vector in vectors.items():
                if len(text) < LONGEST:
                    self._kept[text] = vector.copy()
                    self._kept.move_to_end(text)
            while len(self._kept) > self._size:
                self._kept.popitem(last=False)
