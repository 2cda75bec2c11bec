"""`agent export`: another precision for a bundle, if its verdicts stay the same."""

import json
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from agent.commands import options
from agent.commands.progress import Progress
from agent.commands.train import require_training_packages
from engine.errors import CalibrationError


def export(
    *,
    bundle: Annotated[Path, typer.Option(help="The bundle to add to.")],
    precision: Annotated[
        Literal["fp32", "fp16", "int8", "int8_symmetric"], typer.Option(help="The new precision.")
    ] = "int8",
    data: Annotated[
        Path | None, typer.Option(help="The images that the bundle was trained on.")
    ] = None,
    good: Annotated[
        Path | None, typer.Option(help="Folder of their good images, instead of --data.")
    ] = None,
    defective: Annotated[
        Path | None, typer.Option(help="Folder of their defective images, with --good.")
    ] = None,
    accept_flips: Annotated[
        bool,
        typer.Option(
            "--accept-flips", help="Write it even if verdicts change; parity.json lists them."
        ),
    ] = False,
    bits: Annotated[int | None, options.BITS] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Add the network in another precision, if its verdicts stay the same.

    Example: agent export --bundle bottle --precision int8 --data mvtec_bottle

    Compares both passes on good images that training never saw and on the known defects. The export
    is refused, and nothing changes, if a verdict changes outside the uncertainty of the threshold,
    if the boxes overlap by less than 0.9 in the median, or if the AUROC falls by more than 0.002.
    The bundle gets a new id, so calibrate it again.
    """
    require_training_packages("agent export")
    from calibration.record import read_calibration
    from calibration.threshold import band
    from engine.bundle import open_bundle
    from train.datasets import find_source
    from train.export.gate import add_precision

    opened = open_bundle(bundle)
    threshold, unsure = None, None  # the held-out scores give a provisional threshold
    with suppress(CalibrationError):
        record = read_calibration(opened, precision="fp32").calibration
        threshold = record.threshold
        unsure = band(
            record.good_scores,
            max_false_reject=record.max_false_reject,
            confidence=record.confidence,
        )
    options.require_writable("--bundle", opened.path)
    source = replace(find_source(data, good, defective), bits=bits)
    with Progress() as progress:
        progress.stage(f"making {precision}, and comparing its verdicts with those of fp32")
        extended, judged = add_precision(
            opened,
            precision,
            source,
            threshold=threshold,
            band=unsure,
            accept_flips=accept_flips,
        )
    if as_json:
        answer = {"bundle": str(bundle), "id": extended.id, "precision": precision}
        parity = {name: asdict(each) for name, each in judged.items()}
        typer.echo(json.dumps(answer | {"parity": parity}, indent=2))
        return
    for name, each in judged.items():
        typer.echo(f"{name}: {each.summary}.")
        for objection in each.objections:
            typer.echo(f"OBJECTION, so auto does not take it: {objection}")
    typer.echo(f"Written: {bundle / extended.manifest.networks[precision]}")
    typer.echo(
        f"Next: agent calibrate --bundle {bundle} --precision {precision} --good DIR "
        "(an earlier calibration no longer fits)"
    )
