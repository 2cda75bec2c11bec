"""`calibration.json`: a threshold, the promise behind it, and the bundle it belongs to."""

import platform
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import Field, TypeAdapter

from calibration.bound import interval
from calibration.threshold import choose_threshold
from engine.backends.base import (
    BACKENDS,
    BackendChoice,
    FallbackName,
    PrecisionChoice,
    Runtime,
    backend_of,
)
from engine.bundle import CALIBRATION, Bundle, Precision, Sha256, replace_file, sha256
from engine.errors import BackendError, CalibrationError
from engine.regular_file import read_regular
from engine.spec import SchemaError, parse, spec

if TYPE_CHECKING:
    from calibration.scores import Scores

SCHEMA_VERSION: Final = 1
_MAX_BYTES: Final = 64_000_000

_PACKAGES: Final = (
    *("atac-agent", "numpy", "onnxruntime", "onnxruntime-gpu", "opencv-python-headless", "pillow"),
)

Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(ge=0, le=1)]


@spec
class Calibration:
    """The threshold of one bundle in one precision, and everything needed to argue about it.

    A part is NG when its score is above `threshold`, the (`allowed_exceedances` + 1)-th largest
    of `good_scores` (ascending). The promise: at most `max_false_reject` of good parts are
    rejected, with `confidence`; these `good` parts even exclude more than
    `guaranteed_false_reject`. `detection_interval` is Clopper-Pearson at `confidence`, two-sided;
    `None` without defective parts. The counts below say what was set aside, or was counted but
    looks like another part; see `calibration.scores`.

    `cross_fitted` good parts and `cross_fitted_defective` ones were scored by models that had left
    the part out, not by the bundle's own. With any good part among
    them the promise is no proof, and `guaranteed_false_reject` is what as many unseen parts would
    exclude. `good_sha256` are the hashes of the good parts' pixels, sorted.
    """

    schema_version: int
    created_at: str
    bundle_id: Sha256
    precision: Precision
    backend: str
    threshold: float
    max_false_reject: Annotated[float, Field(gt=0, lt=1)]
    confidence: Annotated[float, Field(gt=0, lt=1)]
    good: Annotated[int, Field(ge=1)]
    allowed_exceedances: Count
    exceedances: Count
    guaranteed_false_reject: Rate
    defective: Count
    detected: Count
    detection_interval: tuple[Rate, Rate] | None
    training_images: Count
    duplicates: Count
    look_alikes: Count
    unreadable: Count
    cross_fitted: Count = 0
    cross_fitted_defective: Count = 0
    good_sha256: tuple[Sha256, ...] = ()
    good_scores: tuple[float, ...]
    defective_scores: tuple[float, ...]
    versions: dict[str, str]

    @property
    def is_proved(self) -> bool:
        """Whether the promise holds by counting alone: the bundle's network had seen no part."""
        return not self.cross_fitted

    @property
    def score_range(self) -> tuple[float, float]:
        """The lowest and the highest score of all its parts, good and defective."""
        scores = (*self.good_scores, *self.defective_scores)
        return min(scores), max(scores)


_CALIBRATION: Final = TypeAdapter(Calibration)


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRecord:
    """A calibration as it lies in the bundle; `id` is the SHA-256 of its file."""

    calibration: Calibration
    id: str


def calibrate(
    bundle: Bundle,
    good: "Scores",
    defective: "Scores | None",
    *,
    precision: Precision,
    backend: str,
    max_false_reject: float,
    confidence: float,
) -> Calibration:
    """Choose the threshold from `good` and judge `defective` by it.

    Args:
        bundle: The bundle that the threshold is for.
        good: The scores of good parts.
        defective: The scores of defective parts, if there are any.
        precision: In which the parts were scored.
        backend: The full name of what scored them.
        max_false_reject: The share of good parts that may be rejected.
        confidence: The confidence with which no more are.

    Raises:
        CalibrationError: The good parts are too few, or a picture is in both sets.
    """
    if defective is not None and good.hashes & defective.hashes:
        both = len(good.hashes & defective.hashes)
        raise CalibrationError(
            f"{both} pictures are among the good and the defective parts alike; "
            "sort them into one folder or the other"
        )
    try:
        threshold = choose_threshold(
            good.values, max_false_reject=max_false_reject, confidence=confidence
        )
    except CalibrationError as error:
        raise CalibrationError(
            f"{error} (set aside: {len(good.training)} training images, "
            f"{len(good.duplicates)} duplicates, {len(good.unreadable)} unreadable)"
        ) from error
    defective_scores = defective.values if defective is not None else ()
    detected = sum(score > threshold.value for score in defective_scores)
    parts = [good] if defective is None else [good, defective]
    return Calibration(
        schema_version=SCHEMA_VERSION,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        bundle_id=bundle.id,
        precision=precision,
        backend=backend,
        threshold=threshold.value,
        max_false_reject=max_false_reject,
        confidence=confidence,
        good=len(good.values),
        allowed_exceedances=threshold.allowed,
        exceedances=threshold.exceedances,
        guaranteed_false_reject=threshold.guaranteed,
        defective=len(defective_scores),
        detected=detected,
        detection_interval=(
            interval(detected, len(defective_scores), confidence=confidence)
            if defective_scores
            else None
        ),
        training_images=sum(len(scores.training) for scores in parts),
        duplicates=sum(len(scores.duplicates) for scores in parts),
        look_alikes=good.look_alikes,
        unreadable=sum(len(scores.unreadable) for scores in parts),
        cross_fitted=good.cross_fitted,
        cross_fitted_defective=0 if defective is None else defective.cross_fitted,
        good_sha256=tuple(sorted(good.hashes)),
        good_scores=tuple(sorted(good.values)),
        defective_scores=tuple(sorted(defective_scores)),
        versions=_versions(),
    )


def _versions() -> dict[str, str]:
    """Of what scores depend on, as far as it is installed: a checkout may be used as it is."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def write_calibration(bundle: Bundle, calibration: Calibration) -> Path:
    """Write `calibration` into its bundle's folder, in place of the last one; atomically."""
    path = bundle.path / CALIBRATION
    try:
        replace_file(path, _CALIBRATION.dump_json(calibration, indent=2) + b"\n")
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be written ({error.strerror})") from error
    return path


def read_calibration(bundle: Bundle, *, precision: PrecisionChoice = "auto") -> CalibrationRecord:
    """The calibration in `bundle`'s folder, made for this very bundle and, if named, `precision`.

    Raises `CalibrationError`, with the command that helps, when there is none, when it belongs to
    another bundle or precision, or when its threshold is not what its own scores give.
    """
    path = bundle.path / CALIBRATION
    wanted = "" if precision == "auto" else f" --precision {precision}"
    remedy = f"make one with: agent calibrate --bundle {bundle.path}{wanted} --good DIR"
    try:
        data = read_regular(path, limit=_MAX_BYTES)
    except FileNotFoundError:
        raise CalibrationError(f"{path}: there is no calibration yet; {remedy}") from None
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        calibration = parse(_CALIBRATION, data, version=SCHEMA_VERSION, noun="calibration")
    except SchemaError as error:
        raise CalibrationError(f"{path}: {error}; {remedy}") from error
    if calibration.bundle_id != bundle.id:
        raise CalibrationError(
            f"{path}: belongs to another bundle ({calibration.bundle_id[:12]}, "
            f"this is {bundle.id[:12]}); {remedy}"
        )
    if precision not in {"auto", calibration.precision}:
        raise CalibrationError(
            f"{path}: was made for {calibration.precision}, not for {precision}; {remedy}"
        )
    if not _consistent(calibration):
        raise CalibrationError(
            f"{path}: its threshold is not the one that its scores give, so its promise is void; "
            f"{remedy}"
        )
    return CalibrationRecord(calibration=calibration, id=sha256(data))


def calibrated_runtime(
    bundle: Bundle,
    record: CalibrationRecord,
    *,
    backend: BackendChoice = "auto",
    fallback: FallbackName | None = None,
) -> Runtime:
    """What `bundle` is to be run with under the threshold of `record`.

    Scores belong to a backend and a precision, and so do thresholds: nothing else is taken
    silently.

    Args:
        bundle: The bundle that is run.
        record: The calibration that the threshold is from.
        backend: The runtime, by its type; `auto` is the one that scored the parts.
        fallback: What may run instead of a runtime that is not installed.

    Raises:
        BackendError: What scored the parts is not installed, and there is no fallback.
        CalibrationError: The record names a backend that does not exist.
    """
    calibration = record.calibration
    if backend != "auto":
        return Runtime(backend=backend, precision=calibration.precision)
    remedy = f"calibrate again: agent calibrate --bundle {bundle.path} --good DIR"
    made_with = backend_of(calibration.backend)
    if made_with is None:
        raise CalibrationError(
            f"{bundle.path / CALIBRATION}: was made with {calibration.backend!r}, which is no "
            f"backend; {remedy}"
        )
    spec = BACKENDS.find(made_with).settings
    if spec.on_cpu and fallback is None and not spec.is_installed():
        raise BackendError(
            f"the threshold was set with {calibration.backend}, and {spec.title} is not installed "
            f"here; install it with: {spec.install()}, or {remedy}"
        )
    return Runtime(backend=made_with, precision=calibration.precision)


def _consistent(calibration: Calibration) -> bool:
    scores, rank = calibration.good_scores, calibration.allowed_exceedances
    return (
        len(scores) == calibration.good > rank
        and list(scores) == sorted(scores)
        and scores[-1 - rank] == calibration.threshold
    )
