"""Remembering what was used last, and no more."""

from collections.abc import Callable
from functools import lru_cache
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """A function that remembers its last `keep` results. Pickled for another process it goes without them."""

    def __init__(self, function: Callable[[K], V], keep: int) -> None:
        self.function, self.keep = function, keep
        self._remembered = lru_cache(keep)(function)

    def __call__(self, key: K) -> V:
        return self._remembered(key)

    def __reduce__(self) -> tuple:
        return Recent, (self.function, self.keep)
