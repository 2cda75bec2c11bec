"""`agent build`: compile a bundle's networks for this machine's GPU, once."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from engine.errors import BackendError, CalibrationError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.backends.tensorrt.plans import Plan, PlanParity
    from engine.bundle import Bundle
    from engine.frame import Inspection
    from engine.inspector import Inspector
    from engine.parity import Parity


def build(
    *,
    bundle: Annotated[Path, typer.Option(help="The bundle whose networks are compiled.")],
    precision: Annotated[
        Literal["fp32", "fp16", "int8", "int8_symmetric"] | None,
        typer.Option(help="Which network of the bundle; default: all that TensorRT runs."),
    ] = None,
    plans: Annotated[
        Path | None, typer.Option(help="Folder for the plans; default: the user's cache.")
    ] = None,
    good: Annotated[
        Path | None,
        typer.Option(help="Good parts, to compare the plan with ONNX Runtime."),
    ] = None,
    defective: Annotated[
        Path | None, typer.Option(help="Defective parts for the same, with --good.")
    ] = None,
    accept_flips: Annotated[
        bool, typer.Option(help="Accept a plan that changes verdicts; they are recorded.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compile the bundle's networks with TensorRT for the GPU of this machine.

    Example: agent build --bundle bottle --precision fp16 --good parts/good

    An existing plan that still fits is kept. With --good, these parts are inspected on the GPU and
    by ONNX Runtime; a plan that changes a verdict at the calibrated threshold is refused.
    Needs an NVIDIA driver, a GPU, and TensorRT or TensorRT-RTX; with --good also pycuda.
    """
    from engine.backends.tensorrt import TensorRt
    from engine.backends.tensorrt.driver import probe_gpu
    from engine.backends.tensorrt.plans import (
        ensure_plan,
        find_tensorrt,
        plans_folder,
        read_parity,
        write_parity,
    )
    from engine.bundle import open_bundle

    images = _images("--good", good), _images("--defective", defective)
    if images[1] and not images[0]:
        raise ConfigurationError("--defective", str(defective), "give good parts too, with --good")
    opened = open_bundle(bundle)
    networks = [each for each in opened.manifest.networks if each in TensorRt.precisions]
    wanted = networks if precision is None else [precision]
    for each in wanted:
        opened.network(each)  # what the bundle lacks is said before anything is built
    gpu = probe_gpu()
    tensorrt = find_tensorrt()
    built = []
    for each in wanted:
        status = _StatusLine(each)
        plan = ensure_plan(
            plans or plans_folder(),
            opened,
            each,
            gpu=gpu,
            tensorrt=tensorrt,
            progress=status.show,
        )
        status.clear()
        if images[0]:
            parity = _compared(opened, plan, images, plans)
            write_parity(plan, parity, accepted=accept_flips)
        compared = read_parity(plan)
        built.append((plan, compared))
        if not as_json:
            typer.echo(_summary(plan, compared))
    if as_json:
        typer.echo(json.dumps([_facts(*each) for each in built], indent=2))
    refused = [plan.record.key.precision for plan, found in built if found and found.refused]
    if refused:
        raise BackendError(
            f"verdicts change with {', '.join(refused)}: the plan will not run; "
            "use another precision, or accept it with --good DIR --accept-flips"
        )


class _StatusLine:
    """One line on a terminal's error output; nothing in a pipe."""

    def __init__(self, precision: str) -> None:
        self._precision = precision
        self._shown = sys.stderr.isatty()

    def show(self, phase: str, done: int, steps: int) -> None:
        if self._shown:
            sys.stderr.write(f"\r\x1b[K{self._precision}: {phase} {done}/{steps}")
            sys.stderr.flush()

    def clear(self) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")


def _images(option: str, folder: Path | None) -> list[Path]:
    from agent.commands.images import images_of

    return [] if folder is None else list(images_of(option, folder).files)


def _compared(
    bundle: "Bundle", plan: "Plan", images: tuple[list[Path], list[Path]], plans: Path | None
) -> "Parity":
    """The same images by ONNX Runtime and all on the device, as it will run, at one threshold."""
    from calibration.record import read_calibration
    from engine.backends.opening import open_inspector
    from engine.backends.tensorrt.backend import open_device_inspector
    from engine.parity import compared, provisional_threshold

    good, defective = images
    precision = plan.record.key.precision
    with open_inspector(bundle, precision=precision) as host:
        expected = _inspected(host, (*good, *defective))
        compared_with = host.name
    with open_device_inspector(bundle, precision=precision, plans=plans, gate=False) as device:
        found = _inspected(device, (*good, *defective))
    try:
        threshold = read_calibration(bundle, precision=precision).calibration.threshold
        calibrated = True
    except CalibrationError:
        scores = [each.score for each in expected]
        threshold = provisional_threshold(scores[: len(good)], scores[len(good) :])
        calibrated = False
    return compared(
        expected,
        found,
        [str(path) for path in (*good, *defective)],
        compared_with=compared_with,
        threshold=threshold,
        threshold_from="calibration" if calibrated else "these images",
    )


def _inspected(inspector: "Inspector", images: "Sequence[Path]") -> "list[Inspection]":
    from engine.image import read_image

    return [inspector.inspect(read_image(path)) for path in images]


def _summary(plan: "Plan", compared: "PlanParity | None") -> str:
    key = plan.record.key
    what = f"built in {plan.record.seconds:.1f} s" if plan.is_new else "still fits"
    size = len(plan.data) / 1e6
    verdicts = (
        "its verdicts were never compared with ONNX Runtime's: give --good DIR"
        if compared is None
        else compared.parity.summary
    )
    return (
        f"{key.precision}: {what}, {size:.1f} MB for {key.gpu} with {key.runtime}: {plan.path}\n"
        f"  {verdicts}"
    )


def _facts(plan: "Plan", compared: "PlanParity | None") -> dict[str, object]:
    return (
        {"path": str(plan.path), "is_new": plan.is_new, "bytes": len(plan.data)}
        | asdict(plan.record)
        | {"parity": None if compared is None else asdict(compared)}
    )
