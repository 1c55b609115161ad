"""Negatives searched anew at every step: the query tower as it is, against a generation whose passages stay (ADORE).

Does not know how the tower is trained, nor what the negatives are used for.
"""

from collections.abc import Callable

from miner.mining import MiningTask, mine_queries, most_positives
from miner.sources import OpenGeneration
from miner.stored_pool import draw_negatives
from retriever.protocols import FloatArray, IntArray, Negatives

EncodeRows = Callable[[IntArray], FloatArray]


class LiveSearch:
    """A NegativeSource that encodes the batch's queries, searches, judges and draws (Zhan et al., SIGIR 2021).

    A draw depends on the weights of the moment beside seed, generation, step, query and passage.
    """

    def __init__(self, generation: OpenGeneration, task: MiningTask, encode: EncodeRows, count: int) -> None:
        """``encode`` gives the vectors float32 [q, dim] of training queries by the present weights."""
        self._generation = generation
        self._task = task
        self._encode = encode
        self._count = count
        self._most_positives = most_positives(task.queries)

    def draw(self, query_rows: IntArray, step: int) -> Negatives:
        """Return negatives of ``query_rows`` int32 [batch]; an empty place: row −1, score 0, mask False."""
        vectors = self._encode(query_rows)
        mined = mine_queries(query_rows, vectors, self._generation, self._task, self._most_positives)
        words = (self._task.seed, self._generation.number, step)
        return draw_negatives(mined, query_rows, self._task.config.sampler, self._count, words)
