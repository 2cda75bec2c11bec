"""Hear every alarm exactly once, also those that a broker has lost: a consumer to start from.

    pip install paho-mqtt
    python examples/subscriber.py --host localhost --agent demo --file heard.sqlite

MQTT delivers at least once, and a broker that dies forgets what it had acknowledged. Three things
make that exactly once here:

- A message is acknowledged when it stands in a file; a part that stands there is passed over.
- Each message names the part of the `previous` one on its topic. One that we have not heard is
  missing, and the agent is asked to replay it, over MQTT 5 request and response.
- When nothing has come for a while, and after each connection, the agent is asked for what is
  newer than the newest that we know, until there is no more.

What the agent no longer has either (`ledger.keep_days`, `ledger.max_mb`) is said to be gone. All
that must survive is in the file: stop or kill this program whenever you like.
"""

import argparse
import json
import secrets
import sqlite3
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from paho.mqtt.client import CallbackAPIVersion, Client, MQTTErrorCode, MQTTMessage, MQTTv5
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

SESSION_S = 7 * 24 * 3600
ANSWER_S = 2.0
QUIET_S = 30.0
OVERLAP = 20
"""Parts may end in another order than they began, but not by so much."""
ASK_OFTEN = 10
SCHEMA = """
PRAGMA journal_mode = WAL;
CREATE TABLE IF NOT EXISTS parts (
    epoch TEXT, sequence INTEGER, part TEXT, PRIMARY KEY (epoch, sequence)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS missing (
    epoch TEXT, sequence INTEGER, asked INTEGER, PRIMARY KEY (epoch, sequence)
) WITHOUT ROWID;
"""


def act(file: sqlite3.Connection, part: dict[str, Any]) -> None:
    """What is to be done about a part: here it is kept.

    This is in one transaction with the note that it was done. What cannot be in a transaction, as
    a lamp or an e-mail, may be done twice when this program is killed at the wrong moment.
    """
    values = (part["epoch"], part["sequence"], json.dumps(part))
    file.execute("INSERT INTO parts VALUES (?, ?, ?)", values)


class Consumer:
    """What has been heard and what is missing; used by one thread."""

    def __init__(self, file: sqlite3.Connection, agent: str, name: str, what: str) -> None:
        self.file = file
        self.topic = f"atac/{agent}/{what}"
        self.request_topic = f"atac/{agent}/request"
        self.response_topic = f"atac/{agent}/response/{name}"
        self.epoch: str | None = None
        self.asked: dict[str, Any] = {}
        self.ask_at = self.tail_at = 0.0

    def subscribe(self, client: Client, *_: object) -> None:
        """After each connection; what was asked on the last one may have had no answer."""
        client.subscribe([(self.topic, 1), (self.response_topic, 0)])
        self.ask_at = self.tail_at = 0.0

    def hear(self, client: Client, _data: object, message: MQTTMessage) -> None:
        content = json.loads(message.payload)
        if message.topic == self.response_topic:
            self.hear_response(client, content)
            return
        properties = dict(message.properties.UserProperty)
        is_new = self.hear_part(content, properties)
        client.ack(message.mid, message.qos)
        now = time.monotonic()
        if is_new:
            self.tail_at = now + QUIET_S
        if "resent" in properties:
            self.ask_at = now + ANSWER_S  # what is missing may be on its way
            self.tail_at = self.ask_at if is_new else self.tail_at

    def hear_part(self, part: dict[str, Any], properties: dict[str, str]) -> bool:
        """Act on a part that is new, and note the one before it where that is missing."""
        epoch, previous = part["epoch"], int(properties["previous"])
        with self.file:
            if self.has(epoch, part["sequence"]):
                return False
            act(self.file, part)
            self.found(epoch, part["sequence"])
            if previous and not self.has(epoch, previous):
                self.file.execute(
                    "INSERT OR IGNORE INTO missing VALUES (?, ?, 0)", (epoch, previous)
                )
        name = part["part_id"] or part["id"]
        print(part["time"], name, part["state"], part["score"], flush=True)
        return True

    def has(self, epoch: str, sequence: int) -> bool:
        found = self.file.execute(
            "SELECT 1 FROM parts WHERE epoch = ? AND sequence = ?", (epoch, sequence)
        )
        return found.fetchone() is not None

    def found(self, epoch: str, sequence: int) -> None:
        self.file.execute("DELETE FROM missing WHERE epoch = ? AND sequence = ?", (epoch, sequence))

    def newest(self, epoch: str, below: int = 1 << 62) -> int:
        """The newest part of an epoch that has been heard, 0 for none."""
        found = self.file.execute(
            "SELECT max(sequence) FROM parts WHERE epoch = ? AND sequence < ?", (epoch, below)
        )
        return found.fetchone()[0] or 0

    def keep_asking(self, client: Client) -> None:
        """One request at a time: for what is missing, else for what may have come since."""
        now = time.monotonic()
        if now < self.ask_at:
            return
        gap = self.file.execute(
            "SELECT epoch, sequence FROM missing ORDER BY asked, epoch, sequence LIMIT 1"
        ).fetchone()
        if gap is not None:
            epoch, last = gap
            first = self.newest(epoch, below=last) + 1
            self.ask(client, command="replay", epoch=epoch, first=first, last=last)
        elif now >= self.tail_at:
            self.ask(client, command="ping")  # whose response names the epoch of now

    def ask(self, client: Client, **content: object) -> None:
        self.asked = {
            **content,
            "nonce": secrets.token_hex(8),
            "expires": f"{datetime.now(UTC) + timedelta(seconds=60):%Y-%m-%dT%H:%M:%SZ}",
        }
        properties = Properties(PacketTypes.PUBLISH)
        properties.ResponseTopic = self.response_topic
        client.publish(self.request_topic, json.dumps(self.asked), qos=1, properties=properties)
        self.ask_at = time.monotonic() + ANSWER_S

    def hear_response(self, client: Client, told: dict[str, Any]) -> None:
        asked = self.asked
        if told["nonce"] != asked.get("nonce"):
            return  # the answer to an earlier run of this program
        if not told["ok"]:
            print("refused:", told["error"], flush=True)
        elif asked["command"] == "ping":
            self.tail_at = time.monotonic() + QUIET_S
            epoch = told["epoch"]
            first = max(1, self.newest(epoch) + 1 - OVERLAP)
            self.ask(client, command="replay", epoch=epoch, first=first, last=1 << 62)
        elif asked["last"] < 1 << 62:
            self.hear_of_gap(asked, told["result"]["messages"])

    def hear_of_gap(self, asked: dict[str, Any], messages: int) -> None:
        """The agent has this number of messages of these parts, and sends them."""
        gap = (asked["epoch"], asked["last"])
        with self.file:
            self.file.execute(
                "UPDATE missing SET asked = asked + 1 WHERE epoch = ? AND sequence = ?", gap
            )
            (tries,) = self.file.execute(
                "SELECT max(asked) FROM missing WHERE epoch = ? AND sequence = ?", gap
            ).fetchone()
            if tries is not None and (messages == 0 or tries >= ASK_OFTEN):
                self.found(*gap)
                print("gone:", asked["epoch"], asked["first"], "to", asked["last"], flush=True)
        if messages == 0:
            self.ask_at = 0.0


def main() -> None:
    """Run until stopped."""
    parser = argparse.ArgumentParser(description="Hear every alarm exactly once.")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=1883)
    parser.add_argument("--agent", required=True, help="its agent.id")
    parser.add_argument("--what", default="alarm", choices=("alarm", "verdict"))
    parser.add_argument("--client-id", default="atac-consumer", help="one for each consumer")
    parser.add_argument("--file", type=Path, default=Path("heard.sqlite"))
    options = parser.parse_args()

    file = sqlite3.connect(options.file)
    file.executescript(SCHEMA)
    consumer = Consumer(file, options.agent, options.client_id, options.what)
    client = Client(
        CallbackAPIVersion.VERSION2, options.client_id, protocol=MQTTv5, manual_ack=True
    )
    client.on_connect = consumer.subscribe
    client.on_message = consumer.hear
    session = Properties(PacketTypes.CONNECT)
    session.SessionExpiryInterval = SESSION_S
    client.connect_async(options.host, options.port, clean_start=False, properties=session)
    is_connected = False
    while True:
        try:
            if not is_connected:
                client.reconnect()
            is_connected = client.loop(timeout=0.5) == MQTTErrorCode.MQTT_ERR_SUCCESS
        except OSError:
            is_connected = False
        if is_connected:
            consumer.keep_asking(client)
        else:
            time.sleep(1.0)


if __name__ == "__main__":
    main()
