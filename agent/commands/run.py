"""`agent run`: inspect the parts of the configured cameras and announce what is wrong."""

import gc
import json
import logging
import threading
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.part import State
    from agent.settings import Config
    from agent.station.station import Model
    from agent.station.summary import Summary
    from engine.inspector import Inspector


def run(
    *,
    context: typer.Context,
    config: Annotated[Path, typer.Option(help="The configuration.")] = Path("agent.yaml"),
    parts: Annotated[
        int | None, typer.Option(min=1, help="How many parts; without it until stopped.")
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show how long each stage took.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    log: Annotated[
        Literal["text", "json"], typer.Option(help="Write the log for people, or as JSON lines.")
    ] = "text",
) -> None:
    """Inspect the cameras' parts, record every verdict, and send alarms.

    Example: agent run --config agent.yaml --parts 100

    Waits for cameras and brokers that are away. Ctrl-C or SIGTERM ends it after the current parts.
    """
    started = monotonic()
    gc.disable()  # what is imported stays, and need not be looked through again and again
    from agent.inference.child import ChildInspector
    from agent.logs import write_logs
    from agent.runtime import calibrated, child_setup, warn_of_another_runtime
    from agent.settings import load_config
    from engine.bundle import open_bundle
    from engine.errors import ConfigurationError, LedgerError

    write_logs(log)
    try:
        settings = load_config(config)
    except ConfigurationError:
        settings = _mended(config)
    bundle = open_bundle(settings.bundle.path, signed_by=settings.bundle.require_signature)
    record, runtime = calibrated(bundle, settings.bundle)
    setup = child_setup(bundle, settings.bundle, runtime)
    starting = ChildInspector(setup, deadline_s=settings.longest_deadline_s, first=context.obj)

    # The child now loads its network; what the agent itself needs is imported beside it.
    from agent.process import prepare_process
    from agent.services.heartbeat import HeartbeatSettings
    from agent.services.terminal import TerminalSettings
    from agent.station.products import opened
    from agent.station.run import run_station
    from agent.station.station import Model, stopping_on_signals

    gc.freeze()
    gc.enable()
    prepare_process()
    stop = threading.Event()
    model = Model.of(record)
    with stopping_on_signals(stop), ExitStack() as inference:

        def served() -> Model:
            inspector = inference.enter_context(starting)
            if (made_with := record.calibration.backend) != inspector.backend:
                warn_of_another_runtime(made_with, inspector.backend, runtime.precision)
            if log == "json":
                logging.getLogger("atac_agent").info("inspects with %s", inspector.backend)
            else:
                typer.echo(f"agent: inspects with {inspector.backend}", err=True)
            return model.on(inspector)

        def all_ready() -> "Mapping[str, tuple[Inspector, Model]]":
            first, *others = settings.products
            return {
                first.name: (starting, model.on(starting)),
                **{
                    one.name: opened(one.bundle, settings.longest_deadline_s, inference)
                    for one in others
                },
            }

        def all_views() -> "Mapping[tuple[str, str], tuple[Inspector, Model]]":
            return {
                (product.name, camera): opened(bundle, settings.longest_deadline_s, inference)
                for product in settings.products
                for camera, bundle in settings.views(product).items()
            }

        summary = run_station(
            settings,
            inspector=starting,
            model=model,
            served=served,
            products=all_ready if settings.products else None,
            views=all_views if settings.products else None,
            parts=parts,
            stop=stop,
            started=started,
            services=(TerminalSettings(), HeartbeatSettings()),
            may_promote=True,
            config_file=config.absolute(),
        )
    typer.echo(
        json.dumps(asdict(summary), indent=2) if as_json else describe(summary, verbose=verbose)
    )
    if summary.lost:
        raise LedgerError(f"{summary.lost} parts could not be recorded")


def _mended(config: Path) -> "Config":
    """The configuration, once it can be read; meanwhile its page shows why it cannot."""
    from agent.services.page.safe import loaded_or_shown
    from agent.settings import load_config
    from agent.station.station import stopping_on_signals

    stop = threading.Event()
    with stopping_on_signals(stop):
        return loaded_or_shown(config, load_config, stop)


def describe(summary: "Summary", *, verbose: bool) -> str:
    """The summary for people; `verbose` adds how long each stage took."""
    rate = f"{summary.seconds:.1f} s ({summary.parts_per_second:.1f}/s)"
    sent = ", ".join(
        f"{getattr(summary, end)} {end}" for end in ("delivered", "refused", "undelivered")
    )
    inspected, others = summary.inspected, summary.triggers - summary.inspected
    lines = [
        f"{summary.triggers} parts in {rate}: {describe_counts(summary.counts)}",
        f"{inspected} inspected, {summary.zoomed} of them looked at twice; {others} not inspected",
        f"{summary.alarms} alarms recorded; messages: {sent}",
    ]
    if summary.triggers:
        first = f"first part {summary.start_up_s:.1f} s after the start"
        lines.append(f"inspected by {summary.backend}, {first}")
    if len(summary.cameras) > 1:
        lines += [f"{name}: {describe_counts(each)}" for name, each in summary.cameras.items()]
    if verbose and summary.latencies:
        lines.append("stage         p50 ms    p99 ms")
        lines += [
            f"{stage:<12}{latency.p50_ms:>8.1f}  {latency.p99_ms:>8.1f}"
            for stage, latency in summary.latencies.items()
        ]
    return "\n".join(lines)


def describe_counts(counts: "Mapping[State, int]") -> str:
    """How parts ended, for people."""
    return ", ".join(f"{n} {state}" for state, n in counts.items() if n) or "none arrived"
