"""`agent demo`: everything at work, with nothing to connect."""

import importlib.util
import json
import logging
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer

from engine.errors import ConfigurationError
from engine.extras import install

if TYPE_CHECKING:
    from agent.demo import Alarm, DemoSummary


def demo(
    *,
    parts: Annotated[
        int | None, typer.Option(min=1, help="How many parts; without it until Ctrl-C.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the generated parts.")] = 0,
    rate: Annotated[
        float | None,
        typer.Option(min=1, max=60_000, help="Parts per minute; default: as fast as possible."),
    ] = None,
    report: Annotated[Path, typer.Option(help="The page with pictures.")] = Path("runs/demo.html"),
    as_json: Annotated[bool, typer.Option("--json", help="Print only a summary, as JSON.")] = False,
) -> None:
    """Inspect generated parts and receive their alarms, without a camera or a broker.

    Example: agent demo

    Without --parts it runs until Ctrl-C, for you to look at its page in a browser.

    The parts are generated, so it is known which ones are defective. The model, both
    passes, the ledger and the MQTT messages are real. Ctrl-C ends the demo with a summary
    and a page of pictures.
    """
    started = perf_counter()
    if importlib.util.find_spec("amqtt") is None:
        raise ConfigurationError("agent demo", "amqtt", f"not installed; {install('demo')}")
    from agent.demo import run_demo
    from agent.report import NEXT_STEPS, write_demo_report
    from agent.station.station import stopping_on_signals

    logging.basicConfig(format="agent: %(message)s", level=logging.WARNING)

    def ready(command: str) -> None:
        if not as_json:
            typer.echo(
                "Alarms come over MQTT. While this runs, another terminal shows the same:\n"
                f"{command}"
            )

    def page(address: str, password: str) -> None:
        if not as_json:
            typer.echo(f"The operator's page: {address} (log in as demo, password {password})")

    def show(alarm: "Alarm") -> None:
        if not as_json:
            typer.echo(describe_alarm(alarm))

    stop = threading.Event()
    with stopping_on_signals(stop):
        summary, comparison = run_demo(
            parts=parts,
            seed=seed,
            rate=rate,
            stop=stop,
            started=started,
            ready=ready,
            show=show,
            page=page,
        )
    write_demo_report(report, summary, comparison)
    if as_json:
        typer.echo(json.dumps(asdict(summary) | {"report": str(report)}, indent=2))
    else:
        typer.echo(describe(summary))
        typer.echo(f"Pictures: {report}\n\nNext:")
        for words, command in NEXT_STEPS:
            typer.echo(f"  {command:<66} {words}")
    if summary.alarms_received != summary.alarms_sent:
        sys.exit(1)


def describe_alarm(alarm: "Alarm") -> str:
    """One line for one alarm."""
    line = f"{alarm.state:<3} {alarm.part_id}"
    if alarm.score is not None and alarm.threshold is not None:
        line += f"  score {alarm.score:6.2f} against {alarm.threshold:.2f}"
    if alarm.box is not None:
        left, top, right, bottom = alarm.box
        line += f"  box {right - left}×{bottom - top} at {left},{top}"
    if alarm.reason is not None:
        line += f"  {alarm.reason}"
    return line


def describe(summary: "DemoSummary") -> str:
    """The summary for people."""
    lines = [
        "",
        f"{summary.parts} parts in {summary.seconds:.1f} s, {summary.parts_per_second:.1f}/s",
        f"{summary.looked_at_twice} parts looked at twice",
        "                 NG      OK",
        f"defective  {summary.caught:>8}{summary.missed:>8}",
        f"good       {summary.false_alarms:>8}{summary.passed:>8}",
        f"alarms     {summary.alarms_sent} sent, {summary.alarms_received} received",
    ]
    if summary.undecided:
        lines.append(f"without a verdict: {summary.undecided}")
    if summary.latency is not None:
        lines.append(
            f"latency    {summary.latency.p50_ms:.1f} ms from frame to verdict (median), "
            f"{summary.latency.p99_ms:.1f} ms (99 %)"
        )
    if summary.first_alarm_s is not None:
        lines.append(f"first alarm {summary.first_alarm_s:.1f} s after the start")
    return "\n".join(lines)
