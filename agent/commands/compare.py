"""`agent compare`: which verdicts of the last days another bundle or threshold would change."""

import json
from pathlib import Path
from typing import Annotated

import typer

from agent.commands import options
from engine.errors import ConfigurationError


def compare(
    *,
    config: Annotated[Path, typer.Option(help="The configuration.")] = Path("agent.yaml"),
    bundle: Annotated[Path | None, typer.Option(help="Another bundle, calibrated.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Another threshold.")] = None,
    product: Annotated[str | None, options.PRODUCT] = None,
    camera: Annotated[str | None, options.CAMERA] = None,
    days: Annotated[float, typer.Option(min=0.01, max=36_500, help="How far back, in days.")] = 7.0,
    newest: Annotated[
        int | None,
        typer.Option(min=1, help="Judge at most this number of frames, the newest ones."),
    ] = None,
    report: Annotated[Path, typer.Option(help="The page with pictures.")] = Path(
        "runs/comparison.html"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Judge kept frames again, by another bundle or another threshold, and show what would change.

    Example: agent compare --config agent.yaml --bundle runs/bottle-2 --days 7

    Needs evidence.folder, where the frames of alarms, of doubtful parts and of the audit are kept.
    Nothing of the agent changes, and it may run meanwhile.
    """
    from agent.commands.progress import Progress
    from agent.comparison import by_bundle, by_threshold, write_comparison
    from agent.record.evidence_files import kept
    from agent.runtime import calibrated
    from agent.settings import load_config
    from engine.backends.opening import open_inspector
    from engine.bundle import open_bundle

    if (bundle is None) == (threshold is None):
        raise ConfigurationError("--bundle", None, "give a bundle, or a threshold, and not both")
    whole = load_config(config)
    settings, (made, cameras) = whole.making(product, camera), whole.inspected(product, camera)
    folder = settings.evidence.folder
    if folder is None:
        raise ConfigurationError("evidence.folder", None, "is not named, so no frame is kept")
    files = kept(folder, settings.agent.id, days=days, product=made, cameras=cameras)
    files = files[-(newest or 0) :]
    if not files:
        raise ConfigurationError(
            "evidence.folder", str(folder), f"has no frame of the last {days:g} days"
        )
    if threshold is not None:
        found = by_threshold(folder, files, threshold)
    else:
        assert bundle is not None
        chosen = settings.bundle
        opened = open_bundle(bundle, signed_by=chosen.require_signature)
        record, runtime = calibrated(opened, chosen)
        with (
            Progress() as progress,
            open_inspector(
                opened,
                backend=runtime.backend,
                precision=runtime.precision,
                fallback=chosen.fallback,
                max_pixels=round(chosen.max_megapixels * 1e6),
            ) as inspector,
        ):
            progress.stage("judging kept frames", len(files), "frames")
            found = by_bundle(
                folder,
                progress.over(files),
                inspector,
                record.calibration.threshold,
                name=f"bundle {opened.id[:12]}",
            )
    write_comparison(report, found)
    if as_json:
        changes = [
            {
                "epoch": one.filed.epoch,
                "sequence": one.filed.sequence,
                "file": one.filed.name,
                "state": one.filed.state,
                "score": one.filed.score,
                "new_state": one.new_state,
                "new_score": one.new_score,
            }
            for one in found.changed
        ]
        answer = {"judged": found.judged, "unreadable": found.unreadable, "changed": changes}
        typer.echo(json.dumps(answer | {"report": str(report)}, indent=2))
    else:
        typer.echo(f"{found.statement}\nPictures: {report}")
