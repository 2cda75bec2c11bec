"""`agent check`: golden samples before the real camera, and the signed protocol of it."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.commands import options
from engine.errors import AtacError, CameraError, ConfigurationError, ImageError

if TYPE_CHECKING:
    from agent.golden import Kept, Sample, Truth
    from agent.ports import Camera
    from engine.inspector import Inspector


def check(
    *,
    config: Annotated[Path, typer.Option(help="The configuration.")] = Path("agent.yaml"),
    camera: Annotated[
        str | None, typer.Option(help="Which camera; needed where there are several.")
    ] = None,
    product: Annotated[str | None, options.PRODUCT] = None,
    good: Annotated[int | None, typer.Option(min=0, help="How many good samples.")] = None,
    defective: Annotated[
        int | None, typer.Option(min=0, help="How many defective samples.")
    ] = None,
    why: Annotated[str, typer.Option(help="What for, for the protocol.")] = "",
    by: Annotated[str | None, typer.Option(help="Who shows them; default: this user.")] = None,
    shows: Annotated[
        bool, typer.Option("--list", help="Only list the protocols, and check their signatures.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Show known good and known defective parts to the camera, and keep a signed protocol.

    Example: agent check --config agent.yaml --why "start of the shift"

    The good samples come first. On a terminal each one is asked for; otherwise the camera's next
    frames are taken. The agent must be stopped; while it runs its page does the same. Exit code 1
    if a sample is not as it should be.
    """
    from agent.commands.bundles import user
    from agent.golden import basis_of, expected, gaps, keep, protocols
    from agent.record.annotations import threshold_in_file
    from agent.record.stopped import stopped_ledger
    from agent.registry import open_camera
    from agent.runtime import calibrated
    from agent.settings import load_config
    from engine.backends.opening import open_inspector
    from engine.bundle import open_bundle

    settings = load_config(config)
    folder = settings.check.folder
    if shows:
        found = protocols(folder)
        _list(found, gaps(found), as_json=as_json)
        return
    names = [one.name for one in settings.cameras]
    chosen = camera or (names[0] if len(names) == 1 else None)
    if chosen not in names:
        raise ConfigurationError("--camera", camera, f"name one of {', '.join(names)}")
    made = settings.making(product, chosen)
    truths = expected(
        settings.check.good if good is None else good,
        settings.check.defective if defective is None else defective,
    )
    if not truths:
        raise ConfigurationError("--good", good, "nothing is shown; give at least one sample")
    bundle = open_bundle(made.bundle.path, signed_by=made.bundle.require_signature)
    record, runtime = calibrated(bundle, made.bundle)
    with stopped_ledger(settings.ledger.path, settings.agent.id) as ledger:
        if ledger is None:
            raise AtacError("the agent runs: check on its page, or stop it first")
    changed = threshold_in_file(settings.ledger.path, record.id)
    threshold = record.calibration.threshold if changed is None else changed
    with open_inspector(
        bundle,
        backend=runtime.backend,
        precision=runtime.precision,
        fallback=made.bundle.fallback,
        max_pixels=round(made.bundle.max_megapixels * 1e6),
    ) as inspector:
        samples = list(
            _shown(
                open_camera(made.cameras[0], features=made.features(chosen)),
                inspector,
                threshold,
                truths,
                silent=as_json,
            )
        )
    kept = keep(
        folder,
        samples,
        basis_of(settings, bundle.id, record.id, threshold),
        camera=chosen,
        who=user(by),
        why=why,
        backend=inspector.name,
        now_ns=time.time_ns(),
    )
    if as_json:
        answer = {"passed": kept.protocol.passed, "protocol": str(kept.path)}
        told = [
            {"truth": one.truth, "part_id": one.part_id, "state": one.state, "score": one.score}
            for one in samples
        ]
        typer.echo(json.dumps(answer | {"samples": told}, indent=2))
    else:
        typer.echo(f"{kept.protocol.statement}\nProtocol: {kept.path}")
    if not kept.protocol.passed:
        sys.exit(1)


def _shown(
    opening: "Camera",
    inspector: "Inspector",
    threshold: float,
    truths: "tuple[Truth, ...]",
    *,
    silent: bool,
) -> "Iterator[Sample]":
    """Show each sample and judge it."""
    asks = sys.stdin.isatty() and not silent
    with opening as camera:
        for number, truth in enumerate(truths, start=1):
            if asks:
                typer.prompt(
                    f"Sample {number} of {len(truths)}: show a {truth} part, then press Enter",
                    default="", show_default=False, prompt_suffix=" ",
                )  # fmt: skip
            sample = _judged(camera, inspector, threshold, truth, newest=asks)
            if not silent:
                right = "as it should be" if sample.is_right else "WRONG"
                score = "" if sample.score is None else f", score {sample.score:.4g}"
                typer.echo(f"{number} {truth}: {sample.state}{score} {right} {sample.reason}")
            yield sample


def _judged(
    camera: "Camera", inspector: "Inspector", threshold: float, truth: "Truth", *, newest: bool
) -> "Sample":
    from agent.cameras.one_frame import one_frame
    from agent.golden import Sample, picture_of
    from agent.part import State, decide

    try:
        if newest and not camera.triggered:
            one_frame(camera)  # what was seen before the sample lay there
        frame = one_frame(camera)
        if frame is None:
            raise CameraError("gives no more frames")
    except ImageError as error:
        return Sample(truth=truth, part_id="", state=State.ERROR, score=None, reason=str(error))
    found = inspector.inspect(frame.pixels)
    return Sample(
        truth=truth,
        part_id=camera.part_id(frame.number) or "",
        state=decide(found, threshold),
        score=found.score,
        picture=picture_of(frame.pixels),
    )


def _list(found: "list[Kept]", wrong: list[str], *, as_json: bool) -> None:
    if as_json:
        rows = [
            {
                "file": str(one.path),
                "at": one.protocol.at,
                "camera": one.protocol.camera,
                "who": one.protocol.who,
                "passed": one.protocol.passed,
                "signed": one.is_signed,
            }
            for one in found
        ]
        typer.echo(json.dumps({"protocols": rows, "wrong": wrong}, indent=2))
    else:
        for one in found:
            protocol = one.protocol
            typer.echo(
                f"{protocol.local_time}  {protocol.camera}  {protocol.who}  {protocol.statement}"
            )
        typer.echo("\n".join(wrong) if wrong else f"{len(found)} protocols, every signature right")
    if wrong:
        sys.exit(1)
