"""What all kinds of sinks have in their settings."""

from typing import Final

from agent.settings_values import Name, SecondsOrNone
from engine.registry import Kinds
from engine.spec import spec


@spec
class AnySinkSettings:
    """`name` names the sink in the ledger, in status and in logs; no two sinks share one.

    `drain_s` is how long a stopping agent goes on delivering what is left.
    """

    type: str
    name: Name
    drain_s: SecondsOrNone = 5.0


SINKS: Final = Kinds("agent.sinks", AnySinkSettings, noun="sink")
