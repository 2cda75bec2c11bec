"""`agent evaluate`: how well a bundle tells defective from good, on images it never saw."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from agent.commands import options
from engine.errors import CalibrationError, ConfigurationError
from engine.pages.text import counted

if TYPE_CHECKING:
    from calibration.record import CalibrationRecord
    from engine.backends.base import PrecisionChoice
    from engine.bundle import Bundle, Precision
    from train.evaluate import Evaluation, Ranking


def evaluate(
    *,
    bundle: Annotated[Path, typer.Option(help="The bundle to evaluate.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder of images: MVTec's layout, or good/ and defective/.")
    ] = None,
    good: Annotated[
        Path | None, typer.Option(help="Folder of good parts, instead of --data.")
    ] = None,
    defective: Annotated[
        Path | None, typer.Option(help="Folder of defective parts, with --good.")
    ] = None,
    backend: Annotated[
        str,
        typer.Option(
            parser=options.backend,
            metavar=options.backend_metavar(),
            help="Runtime of the network; auto: that of the calibration, else the fastest.",
        ),
    ] = "auto",
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16", "int8", "int8_symmetric"],
        typer.Option(help="Number format; auto: as for --backend."),
    ] = "auto",
    bits: Annotated[int | None, options.BITS] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Test a bundle on images that training never used.

    Example: agent evaluate --bundle bottle --data mvtec_bottle

    Says how many defects are found and how many good parts are rejected at the calibrated
    threshold; then AUROC, average precision (AP) and false-positive rate at 95 % recall (FPR@95),
    overall and for each type of defect.
    """
    from agent.runtime import bundle_runtime, warn_of_another_runtime
    from engine.backends.opening import open_backend
    from engine.bundle import open_bundle
    from engine.methods import open_method
    from train.datasets import find_source, left_out, unseen_images
    from train.evaluate import evaluation, scored

    opened = open_bundle(bundle)
    source = replace(find_source(data, good, defective), bits=bits)
    unused = left_out(source)
    for line in unused:
        typer.echo(line, err=True)
    items = unseen_images(source, opened)
    if not items:
        raise ConfigurationError(
            "--data", str(source.root), "holds no image that training has not seen"
        )
    runtime = bundle_runtime(opened, backend=backend, precision=precision)
    with (
        open_backend(opened, backend=runtime.backend, precision=runtime.precision) as network,
        typer.progressbar(
            items, label="images", file=sys.stderr, hidden=not sys.stderr.isatty()
        ) as bar,
    ):
        images = scored(open_method(opened.manifest.method, network), source, bar)
        record = _record(opened, precision, runtime.precision)
        found = evaluation(
            images,
            backend=network.name,
            threshold=None if record is None else record.calibration.threshold,
        )
    if record is not None and record.calibration.backend != found.backend:
        warn_of_another_runtime(record.calibration.backend, found.backend, runtime.precision)
    if as_json:
        typer.echo(json.dumps(asdict(found) | {"left_out": unused}, indent=2))
    else:
        _print(found)


def _record(
    bundle: "Bundle", wanted: "PrecisionChoice", used: "Precision"
) -> "CalibrationRecord | None":
    """The calibration of the precision that was used; without one, None, and why on stderr."""
    from calibration.record import read_calibration

    try:
        record = read_calibration(bundle, precision=wanted)
    except CalibrationError as error:
        sys.stderr.write(f"no threshold: {error}\n")
        return None
    if record.calibration.precision != used:
        sys.stderr.write(
            f"no threshold: calibrated for {record.calibration.precision}, not for {used}\n"
        )
        return None
    return record


def _print(found: "Evaluation") -> None:
    typer.echo(_statement(found))
    typer.echo(
        f"{found.backend:<20} {'good':>5} {'defective':>9} {'AUROC':>6} {'AP':>6} {'FPR@95':>6}"
    )
    for kind, ranking in {"all": found.overall, **found.by_kind}.items():
        typer.echo(_row(kind, ranking))
    if found.at_threshold is not None:
        for path in found.at_threshold.missed:
            typer.echo(f"missed: {path}")


def _statement(found: "Evaluation") -> str:
    """What was found and rejected, in one sentence; without a threshold, what could be at best."""
    at, good, defective = found.at_threshold, found.overall.good, found.overall.defective
    if at is not None:
        return (
            f"Of {counted(defective, 'defect')} {defective - at.misses} found, of "
            f"{counted(good, 'good part')} {at.false_rejects} rejected, at the calibrated "
            f"threshold {at.threshold:.4g}."
        )
    if not (good and defective):
        return f"{counted(good, 'good part')}, {counted(defective, 'defect')}; no threshold yet."
    highest = max(image.score for image in found.images if not image.defective)
    above = sum(image.defective and image.score > highest for image in found.images)
    return (
        f"Of {counted(defective, 'defect')} {above} score above all "
        f"{counted(good, 'good part')}. Next: agent calibrate sets the threshold."
    )


def _row(kind: str, ranking: "Ranking") -> str:
    rates = (ranking.auroc, ranking.average_precision, ranking.fpr_at_95_tpr)
    columns = " ".join(f"{'–' if rate is None else f'{rate:.3f}':>6}" for rate in rates)
    return f"{kind:<20} {ranking.good:>5} {ranking.defective:>9} {columns}"
