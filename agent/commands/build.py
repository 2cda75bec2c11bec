"""`agent build`: compile a bundle's networks for this machine's GPU, once."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from engine.build import Plan


def build(
    *,
    bundle: Annotated[Path, typer.Option(help="The bundle whose networks are compiled.")],
    precision: Annotated[
        Literal["fp32", "fp16", "int8"] | None,
        typer.Option(help="Which network of the bundle; without it all that it has."),
    ] = None,
    plans: Annotated[
        Path | None, typer.Option(help="Folder for the plans, instead of the user's cache.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compile the bundle's networks with TensorRT for the GPU of this machine.

    Example: agent build --bundle bottle --precision fp16

    A plan that is there already and still fits is kept. Needs an NVIDIA driver, a GPU, and
    TensorRT or TensorRT-RTX.
    """
    from engine.backends.cuda_driver import probe_gpu
    from engine.build import ensure_plan, find_tensorrt, plans_folder
    from engine.bundle import open_bundle

    opened = open_bundle(bundle)
    wanted = list(opened.manifest.networks) if precision is None else [precision]
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
        built.append(plan)
        if not as_json:
            typer.echo(_told(plan))
    if as_json:
        typer.echo(json.dumps([_facts(plan) for plan in built], indent=2))


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


def _told(plan: "Plan") -> str:
    key = plan.record.key
    what = f"built in {plan.record.seconds:.1f} s" if plan.is_new else "still fits"
    size = len(plan.data) / 1e6
    return f"{key.precision}: {what}, {size:.1f} MB for {key.gpu} with {key.runtime}: {plan.path}"


def _facts(plan: "Plan") -> dict[str, object]:
    return {"path": str(plan.path), "is_new": plan.is_new, "bytes": len(plan.data)} | asdict(
        plan.record
    )
