"""What commands beside `agent run` run a bundle with: as its threshold says, where it has one."""

from calibration.record import calibrated_runtime, read_calibration
from engine.backends import BackendChoice, PrecisionChoice, Runtime
from engine.backends.choice import fastest
from engine.bundle import Bundle
from engine.errors import CalibrationError


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
