"""What may change while the line runs: product, bundle in force, its threshold, and the pause.

A part is inspected and decided by one bundle and by this bundle's threshold, whatever changes
meanwhile: `held` gives both at once, and `replace` waits until no part needs the old ones.
On a line that makes several products each has its bundle and its threshold; all of them stay ready.
"""

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from agent.station.threshold import Threshold
from engine.inspector import Inspector

if TYPE_CHECKING:
    from agent.station.station import Model

_SET_UP_S: Final = 10.0
"""So long a camera may take to be set up for another product."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InForce:
    """What inspects one part, and the threshold that decides it."""

    inspector: Inspector
    model: "Model"
    threshold: float


class Ready:
    """What inspects with one bundle, and the bundle's threshold; another may take its place.

    Args:
        inspector: What inspects, started.
        model: What it is.
        threshold: Decides.
        cameras: What does so at cameras that see something else, by name.
    """

    def __init__(
        self,
        *,
        inspector: Inspector,
        model: "Model",
        threshold: Threshold,
        cameras: Mapping[str, "Ready"] = MappingProxyType({}),
    ) -> None:
        self._inspector = inspector
        self.model = model
        self.threshold: Final = threshold
        self.cameras: Final = cameras
        self._changed = threading.Condition()
        self._held: Counter[int] = Counter()
        self._serial = 0

    def at(self, camera: str) -> "Ready":
        """What inspects at this camera."""
        return self.cameras.get(camera, self)

    @contextmanager
    def held(self) -> Iterator[InForce]:
        """What inspects a part of this moment; it is there until the end of the context."""
        with self._changed:
            serial = self._serial
            self._held[serial] += 1
            in_force = InForce(
                inspector=self._inspector, model=self.model, threshold=self.threshold.value
            )
        try:
            yield in_force
        finally:
            with self._changed:
                self._held[serial] -= 1
                self._changed.notify_all()

    def replace(
        self, inspector: Inspector, model: "Model", changed: float | None, *, within_s: float
    ) -> Inspector:
        """Inspect the next part with another bundle.

        Returns the old inspector when no part needs it.

        Args:
            inspector: The new one, ready.
            model: What it is.
            changed: What its threshold was changed to by a request, if it was.
            within_s: How long to wait for parts that the old one inspects.
        """
        with self._changed:
            old, replaced = self._serial, self._inspector
            self._inspector, self.model = inspector, model
            self.threshold.take(
                calibrated=model.threshold,
                calibration_id=model.calibration_id,
                scores=model.scores,
                changed=changed,
            )
            self._serial += 1
            self._changed.wait_for(lambda: not self._held[old], within_s)
            return replaced


class Controls:
    """The product and the bundle in force, the threshold, and `paused`: then nothing is inspected.

    `begin` comes before everything else.

    Args:
        threshold: Of the bundle that the line begins with.
        paused: Set while no part is inspected.
        products: By name, on a line that makes several.
        product: Which of them is in force; the first, where there is no such one.
    """

    def __init__(
        self,
        *,
        threshold: Threshold,
        paused: threading.Event | None = None,
        products: Mapping[str, Ready] = MappingProxyType({}),
        product: str | None = None,
    ) -> None:
        self._threshold = threshold
        self.paused = paused or threading.Event()
        self.products = products
        self._product = product if product in products else next(iter(products), None)
        self._adjust: Callable[[str], Mapping[str, Future[str | None]]] = lambda _: {}
        self._whole: Ready

    def begin(self, inspector: Inspector, model: "Model") -> None:
        """What inspects from the first part on."""
        self._whole = Ready(inspector=inspector, model=model, threshold=self._threshold)

    @property
    def product(self) -> str | None:
        """What the next part is, unless its announcement says it; `None` where all are alike."""
        return self._product

    def ready(self, product: str | None = None, camera: str | None = None) -> Ready:
        """What inspects `product`, one of them, at `camera`; of a line without products, all."""
        if not self.products:
            return self._whole
        assert product is not None, "a part of nothing is not inspected"
        one = self.products[product]
        return one if camera is None else one.at(camera)

    @property
    def model(self) -> "Model":
        """What inspects the next part."""
        return self.ready(self._product).model

    @property
    def threshold(self) -> Threshold:
        """The threshold of the product in force."""
        return self._threshold if self._product is None else self.ready(self._product).threshold

    def model_at(self, camera: str) -> "Model":
        """What inspects the next part at this camera."""
        return self.ready(self._product, camera).model

    def threshold_at(self, camera: str) -> Threshold:
        """The threshold of the product in force at this camera."""
        return self.threshold if not self.products else self.ready(self._product, camera).threshold

    @property
    def cameras(self) -> Collection[str]:
        """The cameras with a bundle of their own for the product in force."""
        return () if self._product is None else self.products[self._product].cameras

    def adjust_by(self, adjust: Callable[[str], Mapping[str, Future[str | None]]]) -> None:
        """Cameras are set up for a product by `adjust`, which gives their answers by name."""
        self._adjust = adjust

    def prepare(self, product: str) -> str | None:
        """Have the cameras set up for `product`; why one of them is not, and then none is."""
        for name, answer in self._adjust(product).items():
            try:
                problem = answer.result(_SET_UP_S)
            except TimeoutError:
                problem = f"has not been set up within {_SET_UP_S:g} s"
            if problem is not None:
                if self._product is not None:
                    self._adjust(self._product)
                return f"camera {name} {problem}"
        return None

    def switch(self, product: str) -> None:
        """Parts that begin from now on are this product; others stay what they are."""
        assert product in self.products, "asked before"
        self._product = product
        self._adjust(product)
