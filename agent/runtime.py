"""What a bundle is run with: as its threshold says, where it has one."""

import logging

from agent.inference.child import Setup
from agent.logs import log_format
from agent.settings import BundleSettings
from calibration.record import CalibrationRecord, calibrated_runtime, read_calibration
from engine.backends.base import BACKENDS, BackendChoice, PrecisionChoice, Runtime, backend_of
from engine.backends.choice import fastest
from engine.bundle import Bundle
from engine.errors import CalibrationError


def calibrated(bundle: Bundle, settings: BundleSettings) -> tuple[CalibrationRecord, Runtime]:
    """The threshold of `bundle` under these settings, and what it is to be run with.

    Raises:
        CalibrationError: There is no threshold for this precision.
        BackendError: What the threshold was set with is not installed, and there is no fallback.
    """
    record = read_calibration(bundle, precision=settings.precision)
    runtime = calibrated_runtime(
        bundle, record, backend=settings.backend, fallback=settings.fallback
    )
    return record, runtime


def child_setup(bundle: Bundle, settings: BundleSettings, runtime: Runtime) -> Setup:
    """What a child is told that inspects with `bundle`; it writes its log as this process does."""
    return Setup(
        bundle=bundle.path,
        bundle_id=bundle.id,
        signed_by=settings.require_signature,
        backend=runtime.backend,
        precision=runtime.precision,
        fallback=settings.fallback,
        max_megapixels=settings.max_megapixels,
        log=log_format(),
    )


def bundle_runtime(
    bundle: Bundle, *, backend: BackendChoice = "auto", precision: PrecisionChoice = "auto"
) -> Runtime:
    """`auto` is what the threshold was set with, or the fastest where there is none.

    Raises `BackendError` where what the threshold was set with is not installed.
    """
    try:
        record = read_calibration(bundle, precision=precision)
    except CalibrationError:
        return fastest(bundle, backend=backend, precision=precision)
    return calibrated_runtime(bundle, record, backend=backend)


def warn_of_another_runtime(made_with: str, runs_on: str, precision: str) -> None:
    """Say so, unless both run fp32 on a CPU, where they agree to a hundred-thousandth.

    In less they round differently, and a GPU makes its views itself, in colour not to the bit.
    """
    backends = [backend_of(name) for name in (made_with, runs_on)]
    on_cpu = all(name and BACKENDS.find(name).settings.on_cpu for name in backends)
    if precision != "fp32" or not on_cpu:
        logging.getLogger("atac_agent.inference").warning(
            "the threshold was set with %s, but %s inspects: scores may differ; "
            "calibrate again, or set bundle.backend",
            made_with,
            runs_on,
        )
