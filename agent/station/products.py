"""What inspects the products of a line besides the first: a child process each, all ready."""

from contextlib import ExitStack

from agent.inference.child import ChildInspector
from agent.runtime import calibrated, child_setup, warn_of_another_runtime
from agent.settings import BundleSettings
from agent.station.station import Model
from engine.bundle import open_bundle
from engine.inspector import Inspector


def opened(
    settings: BundleSettings, deadline_s: float | None, stack: ExitStack
) -> tuple[Inspector, Model]:
    """An inspector of a bundle, started, and the model that it serves.

    Args:
        settings: The bundle, and what runs it.
        deadline_s: As for `ChildInspector`.
        stack: Ends its process.

    Raises:
        BundleError: The bundle cannot be used.
        CalibrationError: It has no threshold.
        BackendError: What runs it cannot start.
    """
    bundle = open_bundle(settings.path, signed_by=settings.require_signature)
    record, runtime = calibrated(bundle, settings)
    setup = child_setup(bundle, settings, runtime)
    inspector = stack.enter_context(ChildInspector(setup, deadline_s=deadline_s))
    if (made_with := record.calibration.backend) != inspector.backend:
        warn_of_another_runtime(made_with, inspector.backend, runtime.precision)
    return inspector, Model.of(record).on(inspector)
