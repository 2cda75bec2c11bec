"""`agent fleet`: bundles, desired states and training for many lines."""

import json
import re
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from agent.commands import options
from agent.commands.fleet_page import page, users
from engine.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from agent.fleet.desired import Desired
    from agent.fleet.oci import Registry
    from agent.fleet.plan import FleetPlan
    from agent.fleet.reports import Report
    from agent.fleet.rollout import Step

_SPAN: Final = re.compile(r"(\d+)\s*([hdw])")
_SPANS: Final = {"h": "hours", "d": "days", "w": "weeks"}
_LISTEN_S: Final = 5.0
"""Brokers say at once what they keep; only of lines that they do not know is more waited for."""

Address = Annotated[
    str | None, typer.Option("--registry", help="The registry, where fleet.yaml is not there.")
]
Plan = Annotated[Path, typer.Option("--fleet", help="The lines, their registry and brokers.")]
Key = Annotated[Path, typer.Option(help="The Ed25519 private key to sign with, in PEM.")]
Serial = Annotated[
    int | None, typer.Option(min=1, help="Higher than all before; default: the time in seconds.")
]
Expires = Annotated[str, typer.Option(help="When it expires: 30d, 12h, or a time with its zone.")]
Calibration = Annotated[
    str, typer.Option(help="own: set on the line; or the SHA-256 of one in the registry.")
]
Product = Annotated[str | None, options.PROMOTED_PRODUCT]
Camera = Annotated[str | None, options.PROMOTED_CAMERA]
AsJson = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]
_PLAN: Final = Path("fleet.yaml")
_NO_BUNDLE: Final = "none"


def push(
    *,
    bundle: Annotated[Path, typer.Argument(help="The bundle, signed.")],
    with_calibration: Annotated[
        bool, typer.Option("--calibration", help="Its calibration too, for the line it is of.")
    ] = False,
    registry: Address = None,
    fleet: Plan = _PLAN,
    as_json: AsJson = False,
) -> None:
    """Put a signed bundle into the registry; no line takes it until it is desired.

    Example: agent fleet push runs/bottle --registry https://registry.plant.example/atac
    """
    from agent.fleet.bundles import push_bundle, push_calibration
    from calibration.record import read_calibration
    from engine.bundle import CALIBRATION, open_bundle

    client, plan = _registry(registry, fleet)
    opened = open_bundle(bundle, signed_by=None if plan is None else plan.key, option="key")
    answer = {"bundle_id": push_bundle(client, opened), "calibration_id": None}
    if with_calibration:
        record = read_calibration(opened)
        push_calibration(client, (bundle / CALIBRATION).read_bytes(), record.id)
        answer["calibration_id"] = record.id
    said = "\n".join(f"{name.removesuffix('_id')} {one}" for name, one in answer.items() if one)
    typer.echo(json.dumps(answer, indent=2) if as_json else said)


def desired(
    *,
    line: Annotated[str, typer.Argument(help="The id of the line's agent.")],
    bundle: Annotated[
        str,
        typer.Option(
            help="The SHA-256 of the bundle, as push says it; none: say nothing of the product."
        ),
    ],
    key: Key,
    product: Product = None,
    camera: Camera = None,
    calibration: Calibration = "own",
    serial: Serial = None,
    expires: Expires = "30d",
    registry: Address = None,
    fleet: Plan = _PLAN,
    as_json: AsJson = False,
) -> None:
    """Say which bundle a line should inspect with; its agent takes it at its next look.

    Example: agent fleet desired line-3 --bundle 4f0c… --expires 30d --key signing.pem

    Of a line that makes several products: agent fleet desired line-3 --product cola --bundle 4f0c…
    --key signing.pem; what is desired of the others stays.
    """
    from agent.fleet.desired import publish, repository_of

    client, plan = _registry(registry, fleet)
    place, before = _place(product, camera), None
    if product is not None:
        before = _before(client, plan, line)
    wanted = _Wanted(product=product, camera=camera, bundle=bundle, calibration=calibration)
    state = _state(line, wanted, serial, expires, before)
    publish(client, repository_of(line), state, key)
    answer = {
        "agent": line,
        "serial": state.serial,
        "bundle": bundle,
        "product": product,
        "camera": camera,
        "expires": state.expires,
    }
    of = f" {place}" if place else ""
    said = f"{line} should inspect{of} with {bundle[:12]} (serial {state.serial})"
    if bundle == _NO_BUNDLE:
        said = f"{line} is told nothing of{of} any more (serial {state.serial})"
    said = f"{said} until {state.expires}"
    typer.echo(json.dumps(answer, indent=2) if as_json else said)


def stop(
    *,
    key: Key,
    why: Annotated[str, typer.Option(help="The reason; every line shows it.")] = "",
    lift: Annotated[bool, typer.Option("--lift", help="Let the fleet go on.")] = False,
    serial: Serial = None,
    registry: Address = None,
    fleet: Plan = _PLAN,
    as_json: AsJson = False,
) -> None:
    """Stop the whole fleet: from their next look on, lines take no other bundle.

    Example: agent fleet stop --key signing.pem --why "wrong pictures in the training"

    A line that has taken one keeps it; desire the old one to bring that back.
    """
    from agent.fleet.desired import STOP, Stop, publish

    client, _ = _registry(registry, fleet)
    state = Stop(serial=serial or int(time.time()), is_stopped=not lift, why=why)
    publish(client, STOP, state, key)
    answer = {"stopped": state.is_stopped, "serial": state.serial, "why": why}
    said = "the fleet goes on" if lift else "the fleet is stopped; agent fleet stop --lift ends it"
    typer.echo(json.dumps(answer, indent=2) if as_json else said)


def status(
    *,
    fleet: Plan = _PLAN,
    listen: Annotated[
        float,
        typer.Option(min=0.1, max=3600, help="How long to wait for silent lines, in seconds."),
    ] = _LISTEN_S,
    as_json: AsJson = False,
) -> None:
    """Say what each line inspects with and what became of its desired state; the worst first.

    Example: agent fleet status --fleet fleet.yaml
    """
    from agent.fleet.plan import load_plan

    plan = load_plan(fleet)
    found = _heard(plan, plan.lines, listen)
    if as_json:
        known = {line: found.get(line) for line in plan.lines}
        typer.echo(json.dumps({line: one and asdict(one) for line, one in known.items()}, indent=2))
        return
    for line in sorted(plan.lines, key=lambda line: _urgency(found.get(line))):
        for row in _rows(line, found.get(line)):
            typer.echo(row)
    online = sum(report.is_online for report in found.values())
    typer.echo(f"{online} of {len(plan.lines)} lines are online")


def roll_out(
    *,
    bundle: Annotated[str, typer.Argument(help="The SHA-256 of the bundle, as push says it.")],
    key: Key,
    product: Product = None,
    camera: Camera = None,
    fleet: Plan = _PLAN,
    expires: Expires = "30d",
    listen: Annotated[
        float,
        typer.Option(min=0.1, max=3600, help="How long to wait for silent lines, in seconds."),
    ] = _LISTEN_S,
    once: Annotated[
        bool, typer.Option("--once", help="Do what can be done now, and do not wait.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Bring a bundle to all lines of fleet.yaml: to the first, to 1 %, to 10 %, to all.

    Example: agent fleet roll-out 4f0c… --fleet fleet.yaml --key signing.pem

    It goes on as long as the lines that have the bundle say that it is in force, with few other
    verdicts and the promise asked for, and ends with exit code 1 where they do not. Ctrl-C leaves
    everything as it is; the same command goes on from there.
    """
    from agent.fleet.desired import publish, repository_of
    from agent.fleet.oci import Registry
    from agent.fleet.plan import load_plan
    from agent.fleet.rollout import RollOut

    plan = load_plan(fleet)
    if not plan.brokers:
        raise ConfigurationError("brokers", None, "is missing: nobody could say how lines are")
    registry = Registry.of(plan.registry)
    place = _place(product, camera)
    wanted = _Wanted(product=product, camera=camera, bundle=bundle)
    _state(plan.lines[0], wanted, None, expires)
    _require_pushed(registry, bundle)

    def publish_for(line: str) -> int:
        before = None if product is None else _before(registry, plan, line)
        state = _state(line, wanted, None, expires, before)
        publish(registry, repository_of(line), state, key)
        return state.serial

    going = RollOut(
        plan,
        bundle,
        registry,
        place=place,
        publish=publish_for,
        heard=lambda lines: _heard(plan, lines, listen),
        now=lambda: datetime.now(UTC),
    )
    said = ""
    while True:
        step = going.step()
        if not as_json and said != (said := _told(step, plan, bundle)):
            typer.echo(said, err=step.kind in {"publish", "wait"})
        if step.kind in {"stop", "done"} or (once and step.kind == "wait"):
            break
        if step.kind == "wait":
            time.sleep(plan.roll_out.ask_every_s)
    if as_json:
        answer = {"step": step.kind, "ring": step.ring, "lines": step.lines, "why": step.why}
        typer.echo(json.dumps(answer, indent=2))
    if step.kind == "stop":
        sys.exit(1)


def train(
    *,
    data: Annotated[
        Path, typer.Argument(help="A folder for each line: good/, defective/, or page/labelled.")
    ],
    out: Annotated[Path, typer.Option(help="Gets a bundle for each line.")],
    ray: Annotated[
        str | None,
        typer.Option(help="A Ray cluster: auto, HOST:PORT, or local; without it: train here."),
    ] = None,
    gpus: Annotated[
        float, typer.Option(min=0, max=64, help="GPUs of a task; 0.25: four tasks share one.")
    ] = 0.0,
    cpus: Annotated[float, typer.Option(min=0.1, max=1024, help="CPUs of a task.")] = 1.0,
    retries: Annotated[
        int, typer.Option(min=0, max=100, help="How often a task begins again if its node dies.")
    ] = 3,
    recipe: Annotated[str | None, typer.Option(help="As for agent train.")] = None,
    backbone: Annotated[str | None, typer.Option(help="As for agent train.")] = None,
    stage: Annotated[str | None, typer.Option(help="As for agent train.")] = None,
    backbone_weights: Annotated[
        str, typer.Option(help="As for agent train; a file has to be on each node.")
    ] = "",
    epochs: Annotated[int | None, typer.Option(min=1, help="As for agent train.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="As for agent train.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Train a model for each line, on a Ray cluster or here, one after another.

    Example: agent fleet train sets --out trained --ray auto --gpus 0.25 --backbone-weights r50.pth

    A line that has a bundle in OUT is left alone, so the same command goes on where it was ended.
    Bundles come back unsigned: look at them, agent sign, agent fleet push. Exit code 1 if a line
    has none.
    """
    from agent.commands.train import require_training_packages
    from agent.fleet.training import Cluster, missing_in, sets_in, train_here, train_on

    arguments = ["--seed", str(seed), "--backbone-weights", backbone_weights]
    for option, value in (
        ("--recipe", recipe),
        ("--backbone", backbone),
        ("--stage", stage),
        ("--epochs", epochs),
    ):
        if value is not None:
            arguments += [option, str(value)]
    sets = sets_in(data)
    waiting = missing_in(out, sets)
    if ray is None:
        require_training_packages("agent fleet train")
        found = train_here(waiting, out, arguments)
    else:
        cluster = Cluster(address=ray, gpus=gpus, cpus=cpus, retries=retries)
        found = train_on(cluster, waiting, out, arguments)
    answer: dict[str, object] = {}
    failed = 0
    for one in found:
        failed += one.failure is not None
        bundle = None if one.bundle is None else {"path": str(out / one.line), "id": one.bundle.id}
        answer[one.line] = {"bundle": bundle, "failure": one.failure}
        said = one.failure if one.bundle is None else f"trained, {one.bundle.id[:12]}"
        typer.echo(f"{one.line}: {said}", err=True)
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
    else:
        there = len(sets) - failed
        typer.echo(f"{there} of {len(sets)} lines have a bundle in {out}; sign them: agent sign")
    if failed:
        sys.exit(1)


def _told(step: "Step", plan: "FleetPlan", bundle: str) -> str:
    """A step of a roll-out for people."""
    from engine.pages.text import counted

    ring = f"ring {step.ring} of {len(plan.rings)}"
    match step.kind:
        case "publish":
            return f"{ring}: {counted(len(step.lines), 'line')} should take {bundle[:12]}"
        case "wait":
            lines = counted(len(step.lines), "line")
            said = f" ({step.why})" if step.why else ""
            return f"{ring}: waiting for {lines}, such as {step.lines[0]}{said}"
        case "stop":
            return f"{ring}: stopped: {step.why}"
        case _:
            return f"{bundle[:12]} is in force, as far as roll_out asks for it"


def _heard(plan: "FleetPlan", lines: "Collection[str]", within_s: float) -> "Mapping[str, Report]":
    """What lines say of themselves; a broker that is away is named."""
    from agent.fleet.reports import heard

    found = heard(plan, lines, within_s=within_s)
    for each in found.away:
        typer.echo(f"WARNING: its lines are silent: {each}", err=True)
    return found.reports


def _require_pushed(registry: "Registry", bundle: str) -> None:
    from agent.fleet.bundles import BUNDLES

    if registry.head(BUNDLES, bundle) is None:
        remedy = "is not in the registry; push it with: agent fleet push"
        raise ConfigurationError("bundle", bundle, remedy)


def _registry(address: str | None, fleet: Path) -> "tuple[Registry, FleetPlan | None]":
    from pydantic import ValidationError

    from agent.fleet.oci import Registry
    from agent.fleet.plan import load_plan
    from agent.fleet.settings import RegistrySettings

    if address is None:
        plan = load_plan(fleet)
        return Registry.of(plan.registry), plan
    try:
        return Registry.of(RegistrySettings(address=address)), None
    except ValidationError as error:
        remedy = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ConfigurationError("--registry", address, remedy) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """What should inspect a line, or a product of it, as it was written."""

    product: str | None = None
    camera: str | None = None
    bundle: str
    calibration: str = "own"


def _place(product: str | None, camera: str | None) -> str:
    from agent.fleet.desired import place_of

    if camera is not None and product is None:
        raise ConfigurationError("--camera", camera, "goes with --product")
    return place_of(product, camera)


def _before(registry: "Registry", plan: "FleetPlan | None", line: str) -> "Desired | None":
    """What is desired of a line now, where it is for this line."""
    from agent.fleet.desired import Desired, current, repository_of

    if plan is None:
        remedy = "needs fleet.yaml: its key says whether what is desired of the others is believed"
        raise ConfigurationError("--product", None, remedy)
    found = current(registry, repository_of(line), Desired, plan.key, option="key")
    return found[0] if found is not None and found[0].agent == line else None


def _state(
    line: str,
    wanted: _Wanted,
    serial: int | None,
    expires: str,
    before: "Desired | None" = None,
) -> "Desired":
    """A state that says what is wanted, and of other products what was said `before`."""
    from pydantic import ValidationError

    from agent.fleet.desired import Desired, Wanted

    least = 0 if before is None else before.serial + 1
    serial = serial or max(int(time.time()), least)
    try:
        if wanted.product is None:
            return Desired(
                agent=line,
                serial=serial,
                bundle=wanted.bundle,
                calibration=wanted.calibration,
                expires=_moment(expires),
            )
        products = {} if before is None else {one.place: one for one in before.products}
        place = _place(wanted.product, wanted.camera)
        products.pop(place, None)
        if wanted.bundle != _NO_BUNDLE:
            products[place] = Wanted(serial=serial, **asdict(wanted))
        return Desired(
            agent=line, serial=serial, products=tuple(products.values()), expires=_moment(expires)
        )
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "product"
        option, value = f"--{name}", first["input"]
        remedy = first["msg"].removeprefix("Value error, ")
        if name == "agent":
            option = "line"
        elif name in {"bundle", "calibration"}:
            remedy = "should be 64 hexadecimal digits, as agent fleet push prints them"
        elif not first["loc"]:
            value = wanted.product
        raise ConfigurationError(option, value, remedy) from None


def _moment(text: str) -> str:
    """The time that `30d` or a time means."""
    span = _SPAN.fullmatch(text.strip())
    if span is None:
        return text
    try:
        until = datetime.now(UTC) + timedelta(**{_SPANS[span[2]]: int(span[1])})
    except OverflowError:
        raise ConfigurationError("--expires", text, "is too far away") from None
    return until.isoformat(timespec="seconds")


def _urgency(report: "Report | None") -> tuple[int, str]:
    if report is None:
        return 0, ""
    if not report.is_online:
        return 1, report.agent
    return (2 if report.state in {"refused", "rolled back"} else 3), report.agent


def _rows(line: str, report: "Report | None") -> "Iterator[str]":
    """A line for people: one row, and one for each of its products."""
    if report is None:
        yield f"{line:<20} silent"
        return
    state = (report.state or "in no fleet") if report.is_online else "offline"
    if not report.products:
        yield _row(line, state, report)
        return
    serial = "" if report.serial is None else f"  serial {report.serial}"
    yield f"{line:<20} {state:<12} {len(report.products)} products{serial}"
    for place, one in sorted(report.products.items()):
        yield _row(f"  {place}", one.state or "not named", one)


def _row(name: str, state: str, report: "Report") -> str:
    bundle = (report.bundle_id or "no bundle")[:12]
    parts = [f"{name:<20} {state:<12} {bundle:<12}"]
    if report.serial is not None:
        parts.append(f"serial {report.serial}")
    if report.judged:
        parts.append(f"{report.changed_verdicts} of {report.judged} verdicts changed")
    if report.max_false_reject is not None:
        parts.append(f"promise {100 * report.max_false_reject:.3g} %")
    if report.reason:
        parts.append(report.reason)
    return "  ".join(parts)


fleet: Final = typer.Typer(help="Roll bundles out to many lines, and train models for them.")
fleet.command("push")(push)
fleet.command("desired")(desired)
fleet.command("status")(status)
fleet.command("stop")(stop)
fleet.command("roll-out")(roll_out)
fleet.command("train")(train)
fleet.command("page")(page)
fleet.command("users")(users)
