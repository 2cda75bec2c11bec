"""`agent evaluate`: how well a bundle tells defective from good, on images it never saw."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from agent.commands import options
from agent.commands.progress import Progress
from engine.errors import CalibrationError, ConfigurationError
from engine.pages.text import counted, percent

if TYPE_CHECKING:
    from calibration.evidence import FoundAtPromise
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

    Says first how many defects are found where at most 3 % and 1 % of good parts are rejected,
    with 95 % confidence, overall and for each type of defect, and how many good parts of the test
    are. The threshold for it is of good parts that neither training nor the test saw: those of the
    calibration, else those that training has scored without themselves; else each good part of the
    test is judged by the others. Then AUROC, average precision (AP), false-positive rate at 95 %
    recall (FPR@95), and where masks are, pixel AUROC and AUPRO.
    """
    from agent.runtime import bundle_runtime, warn_of_another_runtime
    from calibration.evidence import found_at_promises, threshold_scores
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
        Progress() as progress,
    ):
        progress.stage("scoring images", len(items), "images")
        method = open_method(opened.manifest.method, network)
        images, pixels = scored(method, source, progress.over(items))
        record = _record(opened, precision, runtime.precision)
        found = evaluation(
            images,
            backend=network.name,
            threshold=None if record is None else record.calibration.threshold,
            pixels=pixels,
        )
    setting = threshold_scores(opened, record, runtime.precision)
    promises = found_at_promises(
        setting,
        # A part that sets the threshold too is judged by no test.
        [one.score for one in images if not one.defective and one.sha256 not in setting.sha256],
        [one.score for one in images if one.defective],
        {kind: [one.score for one in images if one.kind == kind] for kind in found.by_kind},
    )
    if record is not None and record.calibration.backend != found.backend:
        warn_of_another_runtime(record.calibration.backend, found.backend, runtime.precision)
    if as_json:
        answer = asdict(found) | {
            "promises": [asdict(promise) for promise in promises],
            "left_out": unused,
        }
        typer.echo(json.dumps(answer, indent=2))
    else:
        _print(found, promises)


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


def _print(found: "Evaluation", promises: "list[FoundAtPromise]") -> None:
    typer.echo(_statement(found))
    for promise in promises:
        typer.echo(_said(promise))
    limits = " ".join(f"{'≤' + percent(one.overall.promised, digits=2):>7}" for one in promises)
    typer.echo(
        f"{found.backend:<20} {limits}{' ' if limits else ''}{'AUROC':>6} {'AP':>6} {'FPR@95':>6} "
        f"{'good':>5} {'defective':>9}"
    )
    for kind, ranking in {"all": found.overall, **found.by_kind}.items():
        shares = "".join(f"{one.by_kind[kind].found:>7.3f} " for one in promises)
        typer.echo(f"{kind:<20} {shares}{_row(ranking)}")
    if found.pixels is not None:
        typer.echo(f"pixels: AUROC {found.pixels.auroc:.3f}, AUPRO {found.pixels.aupro:.3f}")
    if found.at_threshold is not None:
        for path in found.at_threshold.missed:
            typer.echo(f"missed: {path}")


def _said(promise: "FoundAtPromise") -> str:
    at = promise.overall
    rejected = (
        ""
        if at.false_rejects is None
        else f" Rejected here: {percent(at.false_rejects, digits=2)}."
    )
    bound = "with" if promise.is_proved else "estimated with the bound of"
    return (
        f"Where at most {percent(at.promised, digits=2)} of good parts are rejected, {bound} "
        f"{percent(promise.confidence)} confidence, {percent(at.found, digits=3)} of the defects "
        f"are found (threshold by {at.parts} good parts of {promise.scores_of}).{rejected}"
    )


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


def _row(ranking: "Ranking") -> str:
    rates = (ranking.auroc, ranking.average_precision, ranking.fpr_at_95_tpr)
    columns = " ".join(f"{'–' if rate is None else f'{rate:.3f}':>6}" for rate in rates)
    return f"{columns} {ranking.good:>5} {ranking.defective:>9}"
