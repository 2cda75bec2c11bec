"""`agent calibrate`: set the threshold from good parts, with a stated promise."""

import json
import re
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from agent.commands import options
from agent.commands.progress import Progress
from engine.errors import ConfigurationError, ImageError

if TYPE_CHECKING:
    from agent.ports import Camera
    from agent.settings import BundleSettings, Config
    from calibration.scores import Picture, Scores
    from engine.backends.base import BackendChoice, PrecisionChoice
    from engine.bundle import Bundle
    from engine.inspector import Inspector


def calibrate(
    *,
    bundle: Annotated[Path | None, typer.Option(help="The bundle to calibrate.")] = None,
    good: Annotated[
        Path | None, typer.Option(help="Folder of good parts that training has not seen.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="agent.yaml; its cameras must show good parts only.")
    ] = None,
    frames: Annotated[
        int | None, typer.Option(min=1, help="How many frames to take from those cameras.")
    ] = None,
    product: Annotated[str | None, options.PRODUCT] = None,
    camera: Annotated[
        str | None, typer.Option(help="The only camera to use, and the bundle that it has.")
    ] = None,
    defective: Annotated[
        Path | None, typer.Option(help="Folder of defective parts, if there are any.")
    ] = None,
    max_false_reject: Annotated[
        str | None,
        typer.Option(
            help="Highest share of good parts that may be rejected; "
            "default: 1%, or 3% or 5% where good parts are too few for less."
        ),
    ] = None,
    confidence: Annotated[str, typer.Option(help="Confidence of that promise.")] = "95%",
    backend: Annotated[
        str | None,
        typer.Option(
            parser=options.backend,
            metavar=options.backend_metavar(),
            help="Runtime of the network; auto: the fastest.",
        ),
    ] = None,
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16", "int8", "int8_symmetric"] | None,
        typer.Option(help="Number format; auto: the fastest that keeps the verdicts."),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Only a proof: no scores of parts that training has seen."),
    ] = False,
    bits: Annotated[int | None, options.BITS] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Set the threshold from good parts, with a stated limit on false rejects.

    Example: agent calibrate --bundle bottle --good parts/good --defective parts/defective

    Or with the camera of the line: agent calibrate --config agent.yaml --frames 300

    Or from the good parts that trained, where the recipe has scored each without itself; this is
    an estimate and no proof: agent calibrate --bundle bottle

    Writes calibration.json and calibration.html into the bundle. The threshold belongs to the
    backend and the precision that scored the parts; `agent run` uses the same. Too few good parts
    for the promise are an error that says how many are needed: 299 for 1 % at 95 %, 59 for 5 %.
    """
    from calibration.evidence import Asked, lent_by_training, precision_for, require_enough_with
    from calibration.outlook import costs_of, outlook_of
    from calibration.record import calibrate as calibrated
    from calibration.record import read_calibration, write_calibration
    from calibration.report import REPORT, report_text, warnings, write_report
    from calibration.scores import with_cross_fitted
    from engine.backends.choice import fastest
    from engine.backends.opening import open_inspector
    from engine.bundle import open_bundle
    from engine.cross_fitted import cross_fitted_of, pictures_in

    asked = Asked(
        max_false_reject=(
            None if max_false_reject is None else share("--max-false-reject", max_false_reject)
        ),
        confidence=share("--confidence", confidence),
    )
    settings, given = _source(
        bundle, good, config, frames, backend, precision, bits, product, camera
    )
    defective_parts = None if defective is None else _folder("--defective", defective, bits)
    opened = open_bundle(settings.path, signed_by=settings.require_signature)
    cross_fitted = None if strict else cross_fitted_of(opened)
    if given is None and cross_fitted is None:
        raise ConfigurationError(
            "--good", None, "is not given; name it, or use --config agent.yaml --frames N"
        )
    good_parts = given or _Parts(count=0, pictures=())
    # Not what an earlier threshold was set with: this one takes its place.
    runtime = fastest(
        opened,
        backend=settings.backend,
        precision=precision_for(settings.precision, good_parts.count, cross_fitted, asked),
    )
    lent = lent_by_training(cross_fitted, runtime, has_parts=given is not None)
    # Fewer pictures than it takes need not be scored.
    require_enough_with(asked, good_parts.count, lent)
    options.require_writable("--bundle" if config is None else "bundle.path", opened.path)
    with (
        Progress() as progress,
        open_inspector(
            opened,
            backend=runtime.backend,
            precision=runtime.precision,
            fallback=settings.fallback,
            max_pixels=round(settings.max_megapixels * 1e6),
        ) as inspector,
    ):
        good_scores = _scored(inspector, opened, "good", good_parts, progress)
        defective_scores = (
            None
            if defective_parts is None
            else _scored(inspector, opened, "defective", defective_parts, progress)
        )
        name = inspector.name
    if lent is not None:
        pictures = pictures_in(opened, lent)
        if not asked.is_carried_by(len(good_scores.values)):
            good_scores = with_cross_fitted(good_scores, lent, pictures, label="good")
        if lent.defective:
            defective_scores = with_cross_fitted(
                defective_scores, lent, pictures, label="defective"
            )
    calibration = calibrated(
        opened,
        good_scores,
        defective_scores,
        precision=runtime.precision,
        backend=name,
        max_false_reject=asked.rate(len(good_scores.values)),
        confidence=asked.confidence,
    )
    costs = costs_of(calibration, good_scores)
    report = settings.path / REPORT
    record = write_calibration(opened, calibration)
    write_report(report, calibration, costs, good_scores, defective_scores)
    found = warnings(calibration, good_scores, defective_scores)
    if as_json:
        outlook = outlook_of(calibration, costs, good_scores, defective_scores)
        answer = asdict(calibration) | {
            "id": read_calibration(opened).id,
            "look_first": outlook.look_first,
            "headline": outlook.headline,
            "proved": calibration.is_proved,
            "steps": outlook.steps,
            "types": [asdict(one) for one in outlook.types],
            "costs": asdict(costs),
            "warnings": found,
            "left_out": good_parts.left_out,
            "record": str(record),
            "report": str(report),
        }
        typer.echo(json.dumps(answer, indent=2))
        return
    typer.echo(f"{report_text(calibration, costs, defective_scores)}\n")
    for warning in found:
        typer.echo(f"WARNING: {warning}")
    typer.echo(f"Scored by {calibration.backend}, as agent run will.")
    typer.echo(f"Written: {record} and {report}")


def share(option: str, text: str) -> float:
    """The share between 0 and 1 that `text` means: `1%`, `1 %` and `0.01` are the same."""
    written = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(%?)\s*", text, flags=re.ASCII)
    value = float(written[1]) / (100 if written[2] else 1) if written else 0.0
    if not 0 < value < 1:
        raise ConfigurationError(option, text, "write a share between 0 and 1, as 1% or 0.01")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """`count` pictures of parts, at most; read as they are asked for."""

    count: int
    pictures: "Iterable[Picture | ImageError]"
    left_out: dict[str, int] = field(default_factory=dict)


def _source(
    bundle: Path | None,
    good: Path | None,
    config: Path | None,
    frames: int | None,
    backend: "BackendChoice | None",
    precision: "PrecisionChoice | None",
    bits: int | None,
    product: str | None,
    camera: str | None,
) -> "tuple[BundleSettings, _Parts | None]":
    """The bundle, what runs it, and the good parts: from a folder, from a camera, or none."""
    from agent.settings import BundleSettings, load_config

    if config is None:
        for option, given in (("--frames", frames), ("--product", product), ("--camera", camera)):
            if given is not None:
                raise ConfigurationError(option, given, "goes with --config agent.yaml")
        if bundle is None:
            raise ConfigurationError(
                "--bundle", None, "is not given; name it, or use --config agent.yaml --frames N"
            )
        settings = BundleSettings(
            path=bundle, backend=backend or "auto", precision=precision or "auto"
        )
        return settings, None if good is None else _folder("--good", good, bits)

    for option, value in (
        ("--bundle", bundle),
        ("--good", good),
        ("--backend", backend),
        ("--precision", precision),
    ):
        if value is not None:
            raise ConfigurationError(option, str(value), "does not go with --config, which says it")
    if frames is None:
        raise ConfigurationError("--frames", None, "is not given; say how many frames to take")
    loaded = load_config(config).making(product, camera)
    parts = _Parts(count=frames, pictures=_filmed(loaded, frames))
    return loaded.bundle, parts


def _folder(option: str, folder: Path, bits: int | None) -> _Parts:
    from agent.commands.images import images_of
    from calibration.scores import pictures_of

    listing = images_of(option, folder, all_of_it=True)
    return _Parts(
        count=len(listing.files),
        pictures=pictures_of(listing.files, bits=bits),
        left_out={each.reason: each.count for each in listing.left_out},
    )


def _filmed(config: "Config", frames: int) -> "Iterator[Picture | ImageError]":
    """The next `frames` frames, one of each camera in turns; fewer when all their sources end."""
    from agent.registry import open_camera

    with ExitStack() as stack:
        waiting = deque(
            stack.enter_context(open_camera(one, features=config.features(one.name)))
            for one in config.cameras
        )
        while waiting and frames:
            try:
                picture = _picture(waiting[0])
            except ImageError as error:
                yield error
            else:
                if picture is None:
                    waiting.popleft()
                    continue
                yield picture
            waiting.rotate(-1)
            frames -= 1


def _picture(camera: "Camera") -> "Picture | None":
    from agent.cameras.one_frame import one_frame
    from calibration.scores import Picture

    frame = one_frame(camera)
    if frame is None:
        return None
    return Picture(
        name=camera.part_id(frame.number) or f"frame {frame.number}", pixels=frame.pixels
    )


def _scored(
    inspector: "Inspector",
    bundle: "Bundle",
    label: Literal["good", "defective"],
    parts: _Parts,
    progress: Progress,
) -> "Scores":
    """Score all `parts`.

    Args:
        inspector: Scores them.
        bundle: Names the images that it was trained on.
        label: What they are.
        parts: The pictures.
        progress: Hears of each.
    """
    from calibration.scores import score_pictures

    if parts.count:
        progress.stage(f"scoring {label} parts", parts.count, "parts")
    return score_pictures(
        inspector,
        parts.pictures,
        label=label,
        training=frozenset(bundle.manifest.training.training_sha256),
        progress=progress.step,
    )
