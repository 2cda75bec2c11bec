"""Hear every alarm exactly once: a consumer to start from.

    pip install paho-mqtt
    python examples/subscriber.py --host localhost --agent demo --seen seen.txt

MQTT delivers at least once. This consumer keeps its session at the broker while it is away, and
acknowledges a message only when its id stands in a file; an id that stands there is passed over.
Killed between `act` and the note it would act again: where that matters, let `act` and the note
be one transaction.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from paho.mqtt.client import CallbackAPIVersion, Client, MQTTMessage, MQTTv5
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

SESSION_S = 7 * 24 * 3600


def act(part: dict[str, Any]) -> None:
    """What is to be done about a part; here it is printed."""
    print(part["time"], part["part_id"], part["state"], part["score"], part["box"], flush=True)


def main() -> None:
    """Run until stopped."""
    parser = argparse.ArgumentParser(description="Hear every alarm exactly once.")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=1883)
    parser.add_argument("--agent", default="+", help="one agent's id; all agents without it")
    parser.add_argument("--client-id", default="atac-alarm-consumer", help="one for each consumer")
    parser.add_argument("--seen", type=Path, default=Path("seen.txt"))
    options = parser.parse_args()

    options.seen.touch()
    seen = set(options.seen.read_text(encoding="utf-8").split("\n"))

    def hear(client: Client, _data: object, message: MQTTMessage) -> None:
        part = json.loads(message.payload)
        if part["id"] not in seen:
            act(part)
            seen.add(part["id"])
            with options.seen.open("a", encoding="utf-8") as file:
                file.write(part["id"] + "\n")
        client.ack(message.mid, message.qos)

    def subscribe(client: Client, *_: object) -> None:
        client.subscribe(f"atac/{options.agent}/alarm", qos=1)

    client = Client(
        CallbackAPIVersion.VERSION2,
        options.client_id,
        protocol=MQTTv5,
        manual_ack=True,
    )
    client.on_connect = subscribe
    client.on_message = hear
    session = Properties(PacketTypes.CONNECT)
    session.SessionExpiryInterval = SESSION_S
    client.connect(options.host, options.port, clean_start=False, properties=session)
    client.loop_forever()


if __name__ == "__main__":
    main()
