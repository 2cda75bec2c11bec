"""`agent bench`: how fast a bundle is on this machine, beside its network alone."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from agent.commands import options
from agent.commands.progress import Progress

if TYPE_CHECKING:
    from agent.bench import Speed
    from engine.frame import Pixels

_FRAMES = 20


def bench(
    *,
    bundle: Annotated[Path, typer.Option(help="The bundle to measure.")],
    images: Annotated[
        Path | None,
        typer.Option(help="Folder: twenty of its images are the frames; default: generated."),
    ] = None,
    megapixels: Annotated[
        float, typer.Option(min=0.01, max=50, help="Size of generated frames.")
    ] = 1.2,
    mono: Annotated[bool, typer.Option("--mono", help="Make the generated frames mono.")] = False,
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
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Measure every backend and precision, and name the best."),
    ] = False,
    seconds: Annotated[
        float, typer.Option(min=0.5, help="Duration of each part of a round.")
    ] = 5.0,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of line and network alone.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure the line at its highest rate and at half of it, in turns with the network alone.

    Example: agent bench --bundle bottle --precision int8 --images parts/good

    Frames are decoded beforehand, and no part raises an alarm. Close other programs first.
    """
    from agent.bench import compared, measured, recommended
    from agent.process import prepare_process
    from agent.runtime import bundle_runtime
    from engine.bundle import open_bundle

    # There is no broker, on purpose: nothing that is worth a line.
    logging.getLogger("atac_agent").setLevel(logging.ERROR)
    prepare_process()
    opened = open_bundle(bundle)
    runtime = None if compare else bundle_runtime(opened, backend=backend, precision=precision)
    frames = _generated(megapixels, mono=mono) if images is None else _read(images)
    with Progress() as progress:
        progress.stage(f"measuring, {rounds} rounds of {4 * seconds:g} s for each runtime")
        if runtime is None:
            speeds, missing = compared(opened, frames, seconds=seconds, rounds=rounds)
            best = recommended(speeds)
        else:
            speed = measured(opened, frames, runtime, seconds=seconds, rounds=rounds)
            speeds, missing, best = (speed,), (), None
    if as_json:
        result = {
            "speeds": [asdict(speed) for speed in speeds],
            "missing": missing,
            "recommended": None if best is None else _settings(best),
        }
        typer.echo(json.dumps(result, indent=2))
        return
    typer.echo(table(speeds))
    for reason in missing:
        typer.echo(f"not measured: {reason}")
    if compare:
        typer.echo(
            "no precision is known to keep all verdicts; see agent export"
            if best is None
            else f"fastest that keeps every verdict, for agent.yaml: bundle: {_settings(best)}"
        )


def table(speeds: "Sequence[Speed]") -> str:
    """A table for people, of each one's middle round."""
    first = speeds[0]
    size = "×".join(map(str, (first.frame[1], first.frame[0])))
    colour = "colour" if len(first.frame) == 3 else "mono"
    lines = [
        *_statement(speeds),
        f"frames {size} {colour}, {first.cores} cores; times in ms",
        (
            f"{'':<24}{'parts/s':>9}{'of bare':>9}{'of bound':>9}{'CPU/part':>9}"
            f"{'p50':>8}{'p95':>8}{'p99':>8}{'jitter':>8}{'ready s':>9}{'MB':>6}{'score ±':>10}"
        ),
    ]
    for speed in speeds:
        middle = speed.middle
        whole = middle.paced.stages["end_to_end"]
        lines.append(
            f"{speed.backend:<24}{middle.saturated.parts_per_second:>9.1f}"
            f"{middle.share_of_bare:>9.3f}{middle.share_of_bound:>9.3f}"
            f"{middle.saturated.cpu_ms_per_part:>9.1f}"
            f"{whole.p50_ms:>8.1f}{whole.p95_ms:>8.1f}{whole.p99_ms:>8.1f}"
            f"{middle.paced.jitter_ms:>8.2f}{speed.ready_s:>9.2f}{speed.child_mb:>6.0f}"
            f"{speed.score_difference:>10.2g}"
        )
    if len(speeds) == 1:
        middle = first.middle
        lines.append(f"{'stage':<12}{'p50':>8}{'p95':>8}{'p99':>8}  at saturation, then paced")
        for stage, busy in middle.saturated.stages.items():
            if (calm := middle.paced.stages.get(stage)) is None:  # no such part came
                continue
            lines.append(
                f"{stage:<12}{busy.p50_ms:>8.2f}{busy.p95_ms:>8.2f}{busy.p99_ms:>8.2f}"
                f"{calm.p50_ms:>10.2f}{calm.p95_ms:>8.2f}{calm.p99_ms:>8.2f}"
            )
    return "\n".join(lines)


def _statement(speeds: "Sequence[Speed]") -> Iterator[str]:
    """What the fastest means for a line."""
    fastest = max(speeds, key=lambda speed: speed.middle.saturated.parts_per_second)
    rate = fastest.middle.saturated.parts_per_second
    how = f" with {fastest.backend}" if len(speeds) > 1 else ""
    yield f"This machine inspects {rate:.1f} parts a second = {60 * rate:.0f} a minute{how}."


def _settings(speed: "Speed") -> dict[str, str]:
    return {"backend": speed.backend.split()[0], "precision": speed.precision}


def _generated(megapixels: float, *, mono: bool) -> "list[Pixels]":
    import cv2
    import numpy as np

    from agent.synthetic.flange import HEIGHT, WIDTH, part

    scale = (megapixels * 1e6 / (WIDTH * HEIGHT)) ** 0.5
    size = round(WIDTH * scale), round(HEIGHT * scale)
    frames = []
    for number in range(_FRAMES):
        pixels = part(0, number, 0.1).pixels
        if mono:
            pixels = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
        frames.append(np.asarray(cv2.resize(pixels, size), dtype=np.uint8))
    return frames


def _read(folder: Path) -> "list[Pixels]":
    from agent.commands.images import images_of
    from engine.image import read_image

    files = images_of("--images", folder).files
    return [read_image(file) for file in files[:: -(-len(files) // _FRAMES)]]
