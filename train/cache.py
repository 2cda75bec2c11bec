"""Values that are made once and kept while they fit into memory."""

import threading
from collections.abc import Callable, Collection
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class ByteLimitedCache(Generic[K, V]):
    """Keeps values of at most `limit` bytes together; what does not fit is made each time.

    Threads may share it. Two that ask for one key at the same time may both make its value.
    """

    def __init__(self, *, limit: int) -> None:
        self._values: dict[K, V] = {}
        self._sizes: dict[K, int] = {}
        self._left = limit
        self._lock = threading.Lock()

    def get(self, key: K, make: Callable[[], V], size: Callable[[V], int]) -> V:
        """The value of `key`, from `make()` when it is not here; `size` gives its bytes."""
        try:
            return self._values[key]
        except KeyError:
            value = make()
        with self._lock:
            if key not in self._values and (needed := size(value)) <= self._left:
                self._left -= needed
                self._sizes[key] = needed
                self._values[key] = value
        return value

    def forget_others(self, keys: Collection[K]) -> None:
        """Keep only the values of `keys`."""
        with self._lock:
            for key in self._values.keys() - set(keys):
                self._left += self._sizes.pop(key)
                del self._values[key]
