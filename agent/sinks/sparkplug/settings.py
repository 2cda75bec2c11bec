"""The settings of the Sparkplug B sink."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from agent.mqtt.settings import as_text
from agent.settings_values import Name, Seconds
from agent.sinks.mqtt.settings import BrokerSinkSettings
from engine.spec import spec


def _identifier(text: str) -> str:
    if set(text) & set("/+#"):
        raise ValueError("write a name without / + or #")
    return text


Identifier = Annotated[Name, AfterValidator(_identifier)]


@spec
class SparkplugSettings(BrokerSinkSettings):
    """The broker, and who the agent is in the plant's namespace.

    The edge node is `node` in `group`, by default the agent's id; each camera is a device of it.
    With `primary_host` nothing is sent unless that host application says that it is online.
    `types_in_data` repeats data types in NDATA and DDATA, where the specification advises against
    it and some decoders cannot do without.
    """

    type: Literal["sparkplug"] = "sparkplug"
    name: Name = "sparkplug"
    version: Annotated[Literal["5", "3.1.1"], BeforeValidator(as_text)] = "3.1.1"
    group: Identifier
    node: Identifier | None = None
    parts: Literal["all", "alarms"] = "all"
    health_s: Annotated[Seconds, Field(le=3600)] = 5.0
    primary_host: Identifier | None = None
    types_in_data: bool = False
