"""What others may ask of the running agent, whatever carries the request.

A transport reads the request, decides who may ask, and calls one of these; its answer is what the
function gives, or the `RequestError` that it raises. No request names a file, a host or code.
"""

import logging
import threading
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Final, Literal, Protocol, Self, runtime_checkable

from agent.record.annotations import Audited, Change, Label
from agent.record.rows import software
from engine.errors import AtacError

_LOG: Final = logging.getLogger("atac_agent.line")


class RequestError(AtacError):
    """A request that the agent does not obey; the message says why."""


class Thresholds(Protocol):
    """The threshold in force, and the calibrated one."""

    @property
    def value(self) -> float: ...
    @property
    def calibrated(self) -> float: ...
    def outside(self, value: float) -> str | None: ...
    def change(self, value: float | None, *, by: str, nonce: str, why: str) -> bool: ...


class Bundles(Protocol):
    """What puts another bundle in force."""

    def change(
        self, asked: Change, *, product: str | None, camera: str | None
    ) -> Mapping[str, object]: ...
    def begin(
        self, asked: Change, *, product: str | None, camera: str | None
    ) -> Mapping[str, object]: ...
    def told(self) -> Mapping[str, object]: ...


class Checks(Protocol):
    """Checks with golden samples while the line runs."""

    def begin(self, camera: str, *, by: str, why: str) -> Mapping[str, object]: ...
    def cancel(self) -> Mapping[str, object]: ...
    def status(self) -> Mapping[str, object]: ...


class Products(Protocol):
    """What the line makes, and what it makes now; all of it has a threshold."""

    @property
    def product(self) -> str | None: ...
    @property
    def products(self) -> Collection[str]: ...
    @property
    def threshold(self) -> Thresholds: ...
    @property
    def cameras(self) -> Collection[str]: ...
    def threshold_at(self, camera: str, /) -> Thresholds: ...
    def prepare(self, product: str, /) -> str | None: ...
    def switch(self, product: str, /) -> None: ...


class Drift(Protocol):
    """Whether the line is what its calibration has seen."""

    def recount(self) -> None: ...
    def told(self) -> Mapping[str, object]: ...


class Annotations(Protocol):
    """What this asks of the ledger."""

    @property
    def epoch(self) -> str: ...
    def label(self, label: Label, /) -> bool: ...
    def labels_after(self, known: int, limit: int, /) -> list[dict[str, object]] | None: ...
    def changes(self, since_ns: int, /) -> list[Audited] | None: ...
    def note_change(self, change: Change, /) -> bool: ...
    def use_nonce(self, nonce: str, *, until_ns: int, now_ns: int) -> bool | None: ...


@runtime_checkable
class OnDemand(Protocol):
    """A trigger source that announces a part when it is told to."""

    def fire(self, part_id: str | None = None) -> None: ...


@dataclass(slots=True, eq=False)
class Tally:
    """What the receiver of a sink has asked, where the sink answers by itself."""

    accepted: int = 0
    refused: int = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


class Requests:
    """Obeys requests; may be called by any thread.

    Args:
        ledger: Keeps labels, and which requests were obeyed.
        agent_id: Whose parts they are about.
        threshold: The threshold in force.
        paused: Set while no part is inspected.
        bundles: Puts another bundle in force; `None` where the bundle cannot change.
        checks: Golden samples; `None` where there is no line to show them to.
        drift: Counts labels of the audit.
        products: Those of the line; with them `threshold` is that of the one in force.
        products_by: What alone says which product is made, such as a PLC; `None`: requests.
        sources: What `trigger` can fire, by the camera's name.
    """

    def __init__(
        self,
        ledger: Annotations,
        *,
        agent_id: str,
        threshold: Thresholds,
        paused: threading.Event,
        bundles: Bundles | None = None,
        checks: Checks | None = None,
        drift: Drift | None = None,
        products: Products | None = None,
        products_by: str | None = None,
        sources: Mapping[str, OnDemand] = MappingProxyType({}),
    ) -> None:
        self._ledger = ledger
        self._agent_id: Final = agent_id
        self._threshold = threshold
        self._paused = paused
        self._bundles = bundles
        self._checks = checks
        self._drift = drift
        self._products = products if products is not None and products.products else None
        self._products_by = products_by
        self._sources = sources

    @property
    def epoch(self) -> str:
        """The epoch of now."""
        return self._ledger.epoch

    def ping(self) -> Mapping[str, object]:
        """What runs, and whether it is paused."""
        return {"software": software(), "paused": self._paused.is_set()}

    def pause(self) -> Mapping[str, object]:
        """Inspect no part until `resume`; those that come meanwhile end as DROPPED."""
        self._paused.set()
        return self.ping()

    def resume(self) -> Mapping[str, object]:
        """Inspect again."""
        self._paused.clear()
        return self.ping()

    def trigger(self, camera: str | None, part_id: str | None) -> Mapping[str, object]:
        """Announce a part at a camera whose trigger is `software`; `None`: at the only one."""
        names = list(self._sources)
        if not names:
            raise RequestError("camera: none has trigger: {type: software}")
        if camera is None and len(names) > 1:
            raise RequestError(f"camera: is missing; write {' or '.join(names)}")
        name = names[0] if camera is None else camera
        if name not in self._sources:
            raise RequestError(f"camera: write {' or '.join(names)}")
        self._sources[name].fire(part_id)
        return {"camera": name, "part_id": part_id}

    def product(self) -> Mapping[str, object]:
        """What the line makes now, and what it may make."""
        if self._products is None:
            raise RequestError("the configuration has no products")
        return {"product": self._products.product, "products": list(self._products.products)}

    def switch(self, product: str, *, by: str, why: str, nonce: str) -> Mapping[str, object]:
        """Take the parts that begin from now on for another product.

        Args:
            product: Its name.
            by: Who asks.
            why: The reason, for the record.
            nonce: The request's.

        Returns:
            As `product`.

        Raises:
            RequestError: There is no such product, a camera does not take its features, something
                else says what is made, or the ledger cannot be written.
        """
        known = self.product()
        assert self._products is not None
        if self._products_by is not None:
            raise RequestError(f"product: {self._products_by} says what the line makes")
        if product not in self._products.products:
            raise RequestError(f"product: write {' or '.join(self._products.products)}")
        if (problem := self._products.prepare(product)) is not None:
            raise RequestError(f"{problem}; the line goes on with {known['product']}")
        old = str(known["product"])
        change = Change(kind="product", who=by, why=why, old=old, new=product, nonce=nonce)
        if not self._ledger.note_change(change):
            raise RequestError("the ledger cannot be written, so the product stays as it is")
        self._switched(product)
        return self.product()

    def follow(self, product: str) -> None:
        """The line makes `product`, as what says so has said; nobody can refuse it."""
        assert self._products is not None
        old = self._products.product
        if product != old:
            who, why = self._products_by or "", "it says so"
            change = Change(kind="product", who=who, why=why, old=str(old), new=product)
            self._ledger.note_change(change)
            self._switched(product)

    def _switched(self, product: str) -> None:
        assert self._products is not None
        self._products.switch(product)
        _LOG.warning("the line makes product %s from now on", product)
        if self._drift is not None:
            self._drift.recount()

    def thresholds(self) -> Mapping[str, object]:
        """The threshold above which a part is NG, and the calibrated one.

        Cameras with a bundle of their own have theirs below `cameras`.
        """
        own = () if self._products is None else self._products.cameras
        at = {name: _told(self._in_force(name)) for name in own}
        return _told(self._in_force(None)) | ({"cameras": at} if at else {})

    def _in_force(self, camera: str | None) -> Thresholds:
        products = self._products
        if camera is not None:
            if products is None or camera not in products.cameras:
                raise RequestError("camera: has no bundle of its own; leave it out")
            return products.threshold_at(camera)
        return self._threshold if products is None else products.threshold

    def set_threshold(
        self,
        value: float | None,
        *,
        by: str,
        nonce: str,
        why: str = "",
        force: bool = False,
        camera: str | None = None,
    ) -> Mapping[str, object]:
        """Use another threshold from the next part on.

        Args:
            value: The threshold; `None` for the calibrated one.
            by: Who asks.
            nonce: The request's.
            why: The reason, for the record.
            force: Whether it may lie outside the scores of the calibration.
            camera: Whose threshold, of one that has a bundle of its own; `None`: of the others.

        Returns:
            The threshold and the calibrated one.

        Raises:
            RequestError: It lies outside, or cannot be put on record.
        """
        threshold = self._in_force(camera)  # whatever product comes meanwhile
        outside = None if value is None or force else threshold.outside(value)
        if outside is not None:
            raise RequestError(f"threshold: {outside}; with force: true it is set all the same")
        if not threshold.change(value, by=by, nonce=nonce, why=why):
            raise RequestError("the ledger cannot be written, so the threshold stays as it is")
        return _told(threshold)

    def promote(
        self,
        bundle_id: str,
        *,
        by: str,
        why: str,
        nonce: str,
        product: str | None = None,
        camera: str | None = None,
    ) -> Mapping[str, object]:
        """Have the next part inspected by the bundle that lies beside the one in force.

        Returns when the new one inspects; the line goes on with the old one until then.

        Args:
            bundle_id: Its id: no other is taken.
            by: Who asks.
            why: The reason, for the record.
            nonce: The request's.
            product: Whose bundle it takes the place of, where the line makes several products.
            camera: The camera whose own bundle for this product it is.

        Returns:
            The ids of both bundles, the new threshold, and what runs it.

        Raises:
            RequestError: It is not there, is refused, or cannot be put on record.
        """
        asked = Change(kind="promote", who=by, why=why, old="", new=bundle_id, nonce=nonce)
        return self._changing().change(asked, product=product, camera=camera)

    def rollback(
        self,
        *,
        by: str,
        why: str,
        nonce: str,
        product: str | None = None,
        camera: str | None = None,
    ) -> Mapping[str, object]:
        """Have the next part inspected by the bundle that was in force before; as `promote`."""
        asked = Change(kind="rollback", who=by, why=why, old="", new="", nonce=nonce)
        return self._changing().change(asked, product=product, camera=camera)

    def _changing(self) -> Bundles:
        if self._bundles is None:
            raise RequestError("the bundle of this run cannot change")
        return self._bundles

    def promotion(
        self,
        kind: Literal["promote", "rollback"],
        bundle_id: str,
        *,
        by: str,
        why: str,
        nonce: str,
        product: str | None = None,
        camera: str | None = None,
    ) -> Mapping[str, object]:
        """Begin what `promote` and `rollback` do, and do not wait for its end.

        Args:
            kind: Which of them.
            bundle_id: The id of the bundle to be promoted; empty for a rollback.
            by: Who asks.
            why: The reason, for the record.
            nonce: The request's.
            product: As for `promote`.
            camera: As for `promote`.

        Returns:
            As `promotion_status`.
        """
        if kind not in {"promote", "rollback"}:
            raise RequestError("the bundle of this run cannot change")
        asked = Change(kind=kind, who=by, why=why, old="", new=bundle_id, nonce=nonce)
        return self._changing().begin(asked, product=product, camera=camera)

    def promotion_status(self) -> Mapping[str, object]:
        """Whether a change of bundles is `running`, what the last one came to, what is in force."""
        if self._bundles is None:
            return {"running": False, "error": None, "done": None, "bundle_id": None, "bundles": {}}
        return self._bundles.told()

    def check(self, camera: str, *, by: str, why: str) -> Mapping[str, object]:
        """Take the next parts of a camera for golden samples; the answer is `check_status`'s."""
        return self._checking().begin(camera, by=by, why=why)

    def check_status(self) -> Mapping[str, object]:
        """How far a check is, and what has come of the last one."""
        return self._checking().status()

    def check_cancel(self) -> Mapping[str, object]:
        """End a check of which nothing is kept."""
        return self._checking().cancel()

    def _checking(self) -> Checks:
        if self._checks is None:
            raise RequestError("this run has no golden samples")
        return self._checks

    def label(
        self, part: str, label: str, *, by: str = "", role: str = "", queue: str = ""
    ) -> Mapping[str, object]:
        """Keep somebody's word on a part: was it good, whatever the verdict?

        Args:
            part: The part's id in all that is said of it.
            label: `good`, `defective` or `unsure`; `withdrawn` takes back what was said before.
            by: Who says so.
            role: In which role.
            queue: Why the part was looked at; labels of a random sample alone are unbiased.

        Returns:
            The label as it was kept.

        Raises:
            RequestError: There is no such part, or it cannot be kept.
        """
        agent, _, rest = part.partition(":")
        epoch, _, sequence = rest.partition(":")
        is_number = sequence.isascii() and sequence.isdecimal() and len(sequence) < 19
        if agent != self._agent_id or not is_number:
            raise RequestError("id: is no part of this agent")
        kept = Label(
            epoch=epoch, sequence=int(sequence), label=label, who=by, role=role, queue=queue
        )
        if not self._ledger.label(kept):
            raise RequestError("id: is not in the ledger, or the ledger cannot be written")
        if queue == "audit" and self._drift is not None:
            self._drift.recount()
        return {"id": part, "label": label}

    def labels_after(self, known: int, limit: int = 500) -> list[dict[str, object]]:
        """The next labels after the one with the id `known`, of whatever transport."""
        found = self._ledger.labels_after(known, limit)
        if found is None:
            raise RequestError("the ledger cannot be read")
        return found

    def drift(self) -> Mapping[str, object]:
        """The calibration in force, and what audit and score test say of it."""
        if self._drift is None:
            raise RequestError("this run has no calibration")
        return self._drift.told()

    def changes(self, since_ns: int = 0) -> list[dict[str, object]]:
        """Who changed what, when and why, from a time on."""
        found = self._ledger.changes(since_ns)
        if found is None:
            raise RequestError("the ledger cannot be read")
        return [asdict(one) for one in found]

    def use_once(self, nonce: str, *, until_ns: int, now_ns: int) -> None:
        """Note that a request is obeyed, also for the runs to come; raises when it was before.

        Where the ledger cannot be written, this run remembers: its transport has to.
        """
        if self._ledger.use_nonce(nonce, until_ns=until_ns, now_ns=now_ns) is False:
            raise RequestError("its nonce has been used")


def _told(threshold: Thresholds) -> dict[str, object]:
    return {"threshold": threshold.value, "calibrated": threshold.calibrated}
