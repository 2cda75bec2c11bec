"""`agent calibrate`: set the threshold from good parts, with a stated promise."""

import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from engine.errors import ConfigurationError

if TYPE_CHECKING:
    from calibration.scores import Scores
    from engine.bundle import Bundle
    from engine.inspector import Inspector


def calibrate(
    *,
    bundle: Annotated[Path, typer.Option(help="The bundle to calibrate.")],
    good: Annotated[Path, typer.Option(help="Folder of good parts, unseen by training.")],
    defective: Annotated[
        Path | None, typer.Option(help="Folder of defective parts, if there are any.")
    ] = None,
    max_false_reject: Annotated[
        str, typer.Option(help="Share of good parts that may be rejected.")
    ] = "1%",
    confidence: Annotated[str, typer.Option(help="How sure that must be.")] = "95%",
    precision: Annotated[
        Literal["fp32", "fp16", "int8"], typer.Option(help="Which network of the bundle.")
    ] = "fp32",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Set the threshold so that few good parts are rejected, with a stated confidence.

    Example: agent calibrate --bundle bottle --good parts/good --defective parts/defective

    Writes calibration.json and calibration.html into the bundle. Refuses when the good parts are
    too few for the promise and says how many it takes: 299 for 1 % at 95 %.
    """
    from calibration.record import calibrate as calibrated
    from calibration.record import read_calibration, write_calibration
    from calibration.report import (
        REPORT,
        detection,
        histogram_text,
        promise,
        warnings,
        write_report,
    )
    from engine.backends.onnxruntime_backend import OnnxRuntimeBackend
    from engine.bundle import open_bundle
    from engine.inspector import TwoPassInspector

    rate = share("--max-false-reject", max_false_reject)
    sure = share("--confidence", confidence)
    opened = open_bundle(bundle)
    with OnnxRuntimeBackend(opened, precision=precision) as backend:
        inspector = TwoPassInspector(backend, opened.manifest)
        good_scores = _scored(inspector, opened, "good", good)
        defective_scores = (
            None if defective is None else _scored(inspector, opened, "defective", defective)
        )
        calibration = calibrated(
            opened,
            good_scores,
            defective_scores,
            precision=precision,
            backend=backend.name,
            max_false_reject=rate,
            confidence=sure,
        )
    report = bundle / REPORT
    write_report(report, calibration, good_scores, defective_scores)
    record = write_calibration(opened, calibration)
    found = warnings(calibration, good_scores, defective_scores)
    if as_json:
        answer = asdict(calibration) | {
            "id": read_calibration(opened, precision=precision).id,
            "warnings": found,
            "record": str(record),
            "report": str(report),
        }
        typer.echo(json.dumps(answer, indent=2))
        return
    typer.echo(promise(calibration))
    typer.echo(detection(calibration))
    typer.echo(f"\n{histogram_text(calibration)}\n")
    for warning in found:
        typer.echo(f"WARNING: {warning}")
    typer.echo(f"Written: {record} and {report}")


def share(option: str, text: str) -> float:
    """The share between 0 and 1 that `text` means: `1%`, `1 %` and `0.01` are the same."""
    written = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(%?)\s*", text, flags=re.ASCII)
    value = float(written[1]) / (100 if written[2] else 1) if written else 0.0
    if not 0 < value < 1:
        raise ConfigurationError(option, text, "write a share between 0 and 1, as 1% or 0.01")
    return value


def _scored(
    inspector: "Inspector", bundle: "Bundle", label: Literal["good", "defective"], folder: Path
) -> "Scores":
    from calibration.scores import pictures_of, score_pictures
    from engine.image import images_below

    files = images_below(folder)
    if not files:
        remedy = "there are no images below it" if folder.is_dir() else "there is no such folder"
        raise ConfigurationError(f"--{label}", str(folder), remedy)
    with typer.progressbar(
        length=len(files), label=f"{label} parts", file=sys.stderr, hidden=not sys.stderr.isatty()
    ) as bar:
        return score_pictures(
            inspector,
            pictures_of(files),
            label=label,
            training=frozenset(bundle.manifest.training.training_sha256),
            progress=lambda: bar.update(1),
        )
