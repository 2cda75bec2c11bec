"""What all kinds of sinks have in their settings."""

from typing import Final

from agent.settings_values import Name
from engine.registry import Kinds
from engine.spec import spec


@spec
class AnySinkSettings:
    """`name` names the sink in the ledger, in status and in logs; no two sinks share one."""

    type: str
    name: Name


SINKS: Final = Kinds("agent.sinks", AnySinkSettings, noun="sink")
