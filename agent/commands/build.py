"""`agent build`: make a bundle's networks ready for this machine's GPU, and prove that they run."""

import json
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from agent.commands.progress import Progress
from engine.errors import AtacError, BackendError, CalibrationError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.backends.base import Built
    from engine.bundle import Bundle
    from engine.frame import Inspection
    from engine.gpu.verdicts import GpuParity
    from engine.inspector import Inspector, OpenInspector
    from engine.parity import Parity

_GREY, _SIDE = 90, 224  # the frame that every network is shown first
_NEAR, _NEAR_SHARE = 0.5, 0.05  # deviations: what rounding may change of its score


def build(
    *,
    bundle: Annotated[Path, typer.Option(help="The bundle whose networks are made ready.")],
    backend: Annotated[
        str, typer.Option(help="What they are made ready for: tensorrt or cuda.")
    ] = "tensorrt",
    precision: Annotated[
        Literal["fp32", "fp16", "int8", "int8_symmetric"] | None,
        typer.Option(help="Which network of the bundle; default: all that the backend runs."),
    ] = None,
    plans: Annotated[
        Path | None, typer.Option(help="Folder for the plans; default: the user's cache.")
    ] = None,
    good: Annotated[
        Path | None,
        typer.Option(help="Good parts, to compare the verdicts with ONNX Runtime's."),
    ] = None,
    defective: Annotated[
        Path | None, typer.Option(help="Defective parts for the same, with --good.")
    ] = None,
    accept_flips: Annotated[
        bool,
        typer.Option("--accept-flips", help="Accept verdicts that change; they are recorded."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Make the bundle's networks ready for the GPU of this machine, and prove that they run.

    Example: agent build --bundle bottle --precision fp16 --good parts/good

    TensorRT compiles a plan; one that still fits is kept. For cuda nothing is compiled. Then a
    blank frame is inspected on the GPU and by ONNX Runtime on the CPU, and with --good these parts
    too; what changes a verdict at the calibrated threshold is refused.
    Needs an NVIDIA driver, a GPU, pycuda, and TensorRT, TensorRT-RTX or onnxruntime-gpu.
    """
    from engine.backends.base import BACKENDS
    from engine.bundle import open_bundle
    from engine.errors import KindError

    images = _images("--good", good), _images("--defective", defective)
    if images[1] and not images[0]:
        raise ConfigurationError("--defective", str(defective), "give good parts too, with --good")
    opened = open_bundle(bundle)
    try:
        spec = BACKENDS.find(backend).settings
    except KindError as error:
        raise ConfigurationError("--backend", backend, str(error)) from error
    networks = [each for each in opened.manifest.networks if each in spec.precisions]
    wanted = networks if precision is None else [precision]
    for each in wanted:
        opened.network(each)  # what the bundle lacks is said before anything is built
    proven = []
    for each in wanted:
        with Progress() as progress:
            phases = partial(_say_phase, progress, each)
            built = spec.build(opened, precision=each, cache=plans, progress=phases)
        if built is None:
            raise ConfigurationError("--backend", backend, "nothing is built for it; see --help")
        found = _proven(opened, built, images, accept_flips=accept_flips)
        proven.append((built, found))
        if not as_json:
            typer.echo(_summary(built, found))
    if as_json:
        typer.echo(json.dumps([_facts(*each) for each in proven], indent=2))
    refused = [each.precision for each, found in proven if found and found.refused]
    if refused:
        raise BackendError(
            f"verdicts change with {', '.join(refused)}: the agent will not run it; "
            "use another precision, or accept it with --good DIR --accept-flips"
        )


def _say_phase(progress: Progress, precision: str, phase: str, done: int, steps: int) -> None:
    """The compiler tells how far a phase is; a new one is a stage."""
    what = f"{precision}: {phase}"
    if what != progress.what:
        progress.stage(what, steps, "steps")
    progress.step(done)


def _images(option: str, folder: Path | None) -> list[Path]:
    from agent.commands.images import images_of

    return [] if folder is None else list(images_of(option, folder).files)


def _proven(
    bundle: "Bundle", built: "Built", images: tuple[list[Path], list[Path]], *, accept_flips: bool
) -> "GpuParity | None":
    """How the verdicts compare, as far as they were; raises where a blank frame is not inspected.

    All on the device, as it will run, beside ONNX Runtime with the same network.
    """
    from engine.backends.opening import open_inspector

    with open_inspector(bundle, precision=built.precision) as host, ExitStack() as stack:
        try:
            device = stack.enter_context(built.open())
            device.warm_up()
            _require_like(bundle, host, device)
        except AtacError as error:
            raise BackendError(
                f"{built.precision} was made ready and does not run on {built.target}: {error}; "
                f"{built.remedy}"
            ) from error
        if not images[0]:
            return built.verdicts.read()
        parity = _compared(bundle, built, host, device, images)
    return built.verdicts.write(parity, accepted=accept_flips)


def _require_like(bundle: "Bundle", host: "OpenInspector", device: "OpenInspector") -> None:
    """Raise `BackendError` where a grey frame's score on the device is not the host's."""
    import numpy as np

    regions = bundle.manifest.method.regions
    frame = np.full((_SIDE, _SIDE), _GREY, np.uint8) if regions is None else regions.blank(_GREY)
    expected, found = (each.inspect(frame) for each in (host, device))
    near = max(_NEAR, _NEAR_SHARE * abs(expected.deviation))
    if abs(found.deviation - expected.deviation) > near:
        raise BackendError(
            f"the deviation of a grey frame is {found.deviation:.4g}, and {expected.deviation:.4g} "
            f"by {host.name}"
        )


def _compared(
    bundle: "Bundle",
    built: "Built",
    host: "OpenInspector",
    device: "OpenInspector",
    images: tuple[list[Path], list[Path]],
) -> "Parity":
    """The same images by both, at one threshold."""
    from calibration.record import read_calibration
    from engine.parity import compared, provisional_threshold

    good, defective = images
    expected, found = (_inspected(each, (*good, *defective)) for each in (host, device))
    try:
        threshold = read_calibration(bundle, precision=built.precision).calibration.threshold
        calibrated = True
    except CalibrationError:
        scores = [each.score for each in expected]
        threshold = provisional_threshold(scores[: len(good)], scores[len(good) :])
        calibrated = False
    return compared(
        expected,
        found,
        [str(path) for path in (*good, *defective)],
        compared_with=host.name,
        threshold=threshold,
        threshold_from="calibration" if calibrated else "these images",
    )


def _inspected(inspector: "Inspector", images: "Sequence[Path]") -> "list[Inspection]":
    from engine.image import read_image

    return [inspector.inspect(read_image(path)) for path in images]


def _summary(built: "Built", compared: "GpuParity | None") -> str:
    verdicts = (
        "its verdicts were never compared with ONNX Runtime's: give --good DIR"
        if compared is None
        else compared.parity.summary
    )
    return f"{built.precision}: runs on {built.target}; {built.told}\n  {verdicts}"


def _facts(built: "Built", compared: "GpuParity | None") -> dict[str, object]:
    return {**built.facts, "parity": None if compared is None else asdict(compared)}
