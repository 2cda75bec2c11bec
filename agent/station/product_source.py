"""What the line makes, where a PLC says it: each of its words is a switch, and silence is none."""

import threading
from collections.abc import Callable, Collection, Mapping
from typing import Final

from agent.ports import Announcement


class ProductIntake:
    """Hears a source that says what the line makes.

    Args:
        numbers: What the source may call a product, and the product's name.
        products: The names of all products.
        follow: Has the line make this product; it puts on record what it can.
    """

    def __init__(
        self,
        numbers: Mapping[str, str],
        products: Collection[str],
        follow: Callable[[str], object],
    ) -> None:
        self._numbers = numbers
        self._products = products
        self._follow = follow
        self.changed: Final = threading.Event()
        self.product: str | None = None
        """What was said last, perhaps none of the products; `None`: nothing yet."""

    @property
    def fault(self) -> str | None:
        """Why no part has a product."""
        if self.product is None or self.product in self._products:
            return None
        return (
            f"{self.product!r} is none of the products, so parts end as ERROR; add it, or its "
            "number, to products"
        )

    def announced(self, announcement: Announcement) -> None:
        """The source has said something."""
        told = announcement.product or ""
        self.product = self._numbers.get(told, told)
        if self.product in self._products:
            self._follow(self.product)

    def due(self) -> float | None:
        """Time changes nothing."""
        return None

    def passed(self) -> None:
        """Time changes nothing."""

    def finish(self) -> None:
        """No more parts are wanted."""
