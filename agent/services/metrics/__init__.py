"""The metrics that Prometheus scrapes, and the answer to a container's health check."""

from typing import TYPE_CHECKING, Literal

from agent.services.settings import AnyServiceSettings
from agent.settings_values import AnyPath, HostName, Port, Text
from engine.spec import spec

if TYPE_CHECKING:
    from agent.ports import Service, Watched

__all__ = ["MetricsSettings", "MetricsTls", "open"]


@spec
class MetricsTls:
    """How the agent proves itself to who scrapes it."""

    certificate_file: AnyPath
    key_file: AnyPath


@spec
class MetricsSettings(AnyServiceSettings):
    """Where to listen, and the token that a scrape has to give.

    The token is the content of `token_file` or of the environment variable `token_variable`; it
    has to be there unless `address` is this machine's own.
    """

    type: Literal["metrics"] = "metrics"
    address: HostName = "127.0.0.1"
    port: Port = 9464
    token_file: AnyPath | None = None
    token_variable: Text | None = None
    tls: MetricsTls | None = None


def open(settings: MetricsSettings, watched: "Watched") -> "Service":
    """Serves the status of the agent that is `watched`."""
    from agent.services.metrics.server import MetricsServer  # noqa: PLC0415 - only where it is used

    return MetricsServer(settings, watched)
