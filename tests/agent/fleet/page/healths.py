"""What many lines say of themselves, by the product's own encoder; some are in condition."""

import hashlib
import random
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from agent.fleet.desired import LINE
from agent.fleet.follower import together
from agent.part import State
from agent.sinks.mqtt.messages import Topics, fleet, health, state
from agent.station.status import CameraStatus, DesiredStatus, ProductStatus, Promise, SinkStatus
from tests.agent.statuses import status

MAKES_TWO = 2
"""The number of a line with products."""
SITES = ("hamburg", "lyon", "brno", "turin", "gdansk", "porto", "graz", "oulu")


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def messages(count, seed=7):
    """The retained states and the healths of so many lines in eight sites."""
    chance = random.Random(seed)
    now = datetime.now(UTC)
    for number in range(count):
        agent, site = f"line-{number:03d}", SITES[number * len(SITES) // count]
        topics = Topics(agent_id=agent, template=f"{site}/{{agent}}/{{what}}")
        condition = chance.random()
        faults, fleet_state, reason, off_s, age = (), "in force", None, 0.0, chance.randrange(60)
        if 0.004 <= condition < 0.014:
            faults = ("camera main: no frame for 12 s; look at its cable and its trigger",)
        elif 0.014 <= condition < 0.024:
            fleet_state = chance.choice(("refused", "rolled back"))
            reason = "31 of 200 parts were NG; at most 0.1 may be"
        elif 0.024 <= condition < 0.034:
            faults = ("drift: the scores of OK parts have changed; look at light and lens",)
        elif 0.034 <= condition < 0.039:
            off_s = 86_400.0
        elif 0.039 <= condition < 0.044:
            age = 400
        elif 0.044 <= condition < 0.06:
            fleet_state = "on trial"
        parts = chance.randrange(10_000, 900_000)
        ng = round(parts * chance.choice((0.002, 0.01, 0.02, 0.06)))
        camera = CameraStatus(
            triggers=parts, counts=dict.fromkeys(State, 0) | {State.OK: parts - ng, State.NG: ng}
        )
        bundle = digest(f"bundle {chance.choice((1, 1, 1, 1, 2, 3))}")
        desired = DesiredStatus(
            state=fleet_state,
            serial=1_764_000_000 + number,
            bundle=digest("bundle 1"),
            reason=reason,
            judged=200,
            changed_verdicts=chance.randrange(5),
            promise=Promise(
                max_false_reject=chance.choice((0.01, 0.005)),
                confidence=0.95,
                is_proved=True,
                calibrated_at=(now - timedelta(days=age)).isoformat(timespec="seconds"),
            ),
        )
        told, products = together({LINE: desired}, desired.serial), {}
        if number == MAKES_TWO:
            lemon = replace(desired, state="on trial", reason="until 200 parts have ended")
            told = together({"cola": desired, "lemon": lemon}, desired.serial)
            in_force = {"cola": digest("bundle 1"), "lemon": digest("bundle 3")}
            products = {
                name: ProductStatus(bundle_id=one, counts=camera.counts)
                for name, one in in_force.items()
            }
        shown = status(
            agent_id=agent,
            time_ns=time.time_ns() + round(off_s * 1e9),
            uptime_s=3600.0,
            cameras={"main": camera},
            sinks={"mqtt": SinkStatus(is_connected=True)},
            faults=faults,
            fleet=told,
            bundle_id=bundle,
            products=products,
        )
        is_online = condition >= 0.004
        yield state(topics, online=is_online)
        yield fleet(topics, shown)
        if is_online:
            yield replace(health(topics, "mqtt", shown), retain=True)
