"""Noise as a pure function of its words: the same words give the same number, whatever is drawn beside them.

Does not know what the words stand for, nor what is drawn with the noise.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.data import hash64

Word = int | str | NDArray[np.integer[Any]]
"""A number, a name for the purpose of a draw, or an array of numbers, broadcast against the other words."""

BITS_64 = (1 << 64) - 1
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
FRACTION_BITS = 52


def counter_hash(*words: Word) -> NDArray[np.uint64]:
    """Return a uint64 for each place of the broadcast ``words`` (at least one dimension).

    Each word is mixed into the state of those before it by the finaliser of SplitMix64 (Steele, Lea and
    Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014; constants of Vigna's splitmix64.c).
    """
    state = np.zeros(1, np.uint64)
    for word in words:
        state = (state ^ _as_uint64(word)) + GOLDEN
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return state


def _as_uint64(word: Word) -> NDArray[np.uint64]:
    if isinstance(word, str):
        word = hash64(word)
    if isinstance(word, int):
        return np.array([word & BITS_64], np.uint64)
    return word.astype(np.uint64)


def uniform(*words: Word) -> NDArray[np.float64]:
    """Return float64 uniform on the open interval (0, 1), one for each place of the broadcast ``words``."""
    # 52 bits and a half are exact in float64; one bit more would round the largest value up to 1.
    steps = counter_hash(*words) >> np.uint64(64 - FRACTION_BITS)
    return (steps.astype(np.float64) + 0.5) * 2.0**-FRACTION_BITS


def gumbel(*words: Word) -> NDArray[np.float64]:
    """Return float64 from the standard Gumbel distribution, one for each place of the broadcast ``words``."""
    noise: NDArray[np.float64] = -np.log(-np.log(uniform(*words)))
    return noise
