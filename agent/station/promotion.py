"""Another bundle comes into force while the line runs, between two parts.

    request ─▶ check ─▶ a child with the new bundle, ready ─▶ folders change places ─▶ ledger
                                                                 old child ends ◀── next part

The new bundle lies beside the old one (`agent/bundle_places.py`) and brings a calibration of its
own: a threshold belongs to one bundle. On a line with products it is that of one product, and the
parts of the others notice nothing. Whatever is wrong with it is found before anything changes, and
the line goes on with the old one meanwhile.
"""

import logging
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final, Self

from agent.bundle_places import next_place, previous_place, put_in_force, take_back
from agent.inference.child import ChildInspector
from agent.record.annotations import Change
from agent.record.ledger import Ledger
from agent.requests import RequestError
from agent.runtime import calibrated, child_setup
from agent.settings import BundleSettings, Config
from agent.station.controls import Controls, Ready
from agent.station.station import Model
from engine.bundle import open_bundle
from engine.errors import AtacError

_LOG: Final = logging.getLogger("atac_agent.line")
_PART_S: Final = 60.0
"""How long to wait for parts that the old bundle inspects."""


class Promotion:
    """Obeys `promote` and `rollback`, one at a time; a context manager that ends what it opened.

    Args:
        config: Names the bundles.
        ledger: Keeps who asked.
        controls: What is in force.
    """

    def __init__(self, config: Config, *, ledger: Ledger, controls: Controls) -> None:
        self._config = config
        self._ledger = ledger
        self._controls = controls
        self._changing = threading.Lock()
        # Lasts as long as what it opens: the kernel ends a child with the thread that began it.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="atac-promotion")
        self._opened: dict[Path, ChildInspector] = {}
        self._told: Mapping[str, object] = {"running": False, "error": None, "done": None}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()
        with self._changing:
            for opened in self._opened.values():
                opened.__exit__()

    def change(
        self, asked: Change, *, product: str | None, camera: str | None
    ) -> Mapping[str, object]:
        """Have the next part inspected by the bundle whose id is `new`; see `Requests.promote`."""
        if not self._changing.acquire(blocking=False):
            raise RequestError("another bundle is coming into force just now; ask again later")
        try:
            settings = self._config.promoted(product, camera)
            return self._change(settings, self._controls.ready(product, camera), asked)
        except AtacError as error:
            if not isinstance(error, RequestError):
                error = RequestError(f"{error}; the line goes on with the bundle that it has")
            _LOG.warning('"%s" asked for another bundle, refused: %s', asked.who, error)
            raise error from None
        finally:
            self._changing.release()

    def begin(
        self, asked: Change, *, product: str | None, camera: str | None
    ) -> Mapping[str, object]:
        """As `change`, in another thread; `told` says what came of it."""
        if self._told["running"]:
            raise RequestError("another bundle is coming into force just now; ask again later")
        self._told = {"running": True, "error": None, "done": None}

        def change() -> None:
            error, done = None, None
            try:
                done = self.change(asked, product=product, camera=camera)
            except Exception as failure:  # noqa: BLE001 - told to whoever has asked
                error = str(failure)
            self._told = {"running": False, "error": error, "done": done}

        self._thread.submit(change)
        return self.told()

    def told(self) -> Mapping[str, object]:
        """Whether a change that was begun is `running`, and what it came to: `error`, or `done`.

        `bundle_id` is the bundle in force at this moment, and `bundles` has that of each product.
        """
        told = self._told  # before the bundles: what it says to be done has been done
        products = self._controls.products.items()
        return {
            **told,
            "bundle_id": self._controls.model.bundle_id,
            "bundles": {name: one.model.bundle_id for name, one in products},
        }

    def _change(
        self, settings: BundleSettings, ready: Ready, asked: Change
    ) -> Mapping[str, object]:
        path, old = settings.path, ready.model
        place = next_place(path) if asked.kind == "promote" else previous_place(path)
        bundle = open_bundle(
            place, signed_by=settings.require_signature, bundle_id=asked.new or None
        )
        if bundle.id == old.bundle_id:
            raise RequestError("is the bundle in force already")
        record, runtime = calibrated(bundle, settings)
        setup = child_setup(bundle, settings, runtime)
        change = replace(asked, old=old.bundle_id, new=bundle.id)
        deadline_s = self._config.longest_deadline_s
        changed = self._ledger.changed_threshold(record.id)
        with ExitStack() as opening:
            inspector = opening.enter_context(ChildInspector(setup, deadline_s=deadline_s))
            put_in_force(path, place)
            inspector.moved(path)
            if not self._ledger.note_change(change):
                take_back(path, place)
                raise RequestError("the ledger cannot be written, so the bundle stays as it is")
            model = Model.of(record).on(inspector)
            replaced = ready.replace(inspector, model, changed, within_s=_PART_S)
            self._opened[path] = inspector
            opening.pop_all()
        if isinstance(replaced, ChildInspector):
            replaced.__exit__()
        _LOG.warning(
            '"%s" put bundle %s in force in place of %s: %s',
            change.who, bundle.id[:12], old.bundle_id[:12], change.why or "no reason given",
        )  # fmt: skip
        return {
            "bundle_id": bundle.id,
            "previous": old.bundle_id,
            "threshold": ready.threshold.value,
            "backend": inspector.backend,
        }
