"""Opens what the configuration names: nothing else imports a camera, trigger, sink or service.

Each room has its kinds beside the base of their settings: `CAMERAS`, `TRIGGERS`, `SINKS` and
`SERVICES`. `engine/registry.py` says how a kind is found and how an installed package adds one.
"""

import threading
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any, Final

from agent.cameras.settings import CAMERAS, UNNAMED, AnyCameraSettings, Features
from agent.clock import SystemClock
from agent.part import Part
from agent.ports import Camera, CameraContext, Clock, Service, Sink, TriggerSource, Watched
from agent.services.settings import SERVICES, AnyServiceSettings
from agent.sinks.settings import SINKS, AnySinkSettings
from agent.triggers.settings import TRIGGERS, AnyTriggerSettings, SinkTriggerSettings
from engine.registry import Kinds

ROOMS: Final[tuple[Kinds[Any], ...]] = (CAMERAS, TRIGGERS, SINKS, SERVICES)
"""All kinds that a configuration can name."""


def open_camera(
    settings: AnyCameraSettings,
    stop: threading.Event | None = None,
    *,
    clock: Clock | None = None,
    recorded: Callable[[Collection[str]], Collection[str]] | None = None,
    takes_bayer: Callable[[], bool] = lambda: False,
    features: Mapping[str, Features] = MappingProxyType({}),
) -> Camera:
    """The camera that `settings` describe, not entered yet.

    Args:
        settings: Of any kind.
        stop: Ends its waits.
        clock: Paces it; without one the system's.
        recorded: Which of some sources have a part in the ledger; without it nothing is known.
        takes_bayer: Whether what inspects its frames takes raw colour pixels.
        features: What it has besides its own features, by product; it begins with the first.

    Returns:
        The camera, which has touched nothing.
    """
    context = CameraContext(
        stop=stop or threading.Event(),
        clock=clock or SystemClock(),
        recorded=recorded,
        takes_bayer=takes_bayer,
        features=features,
    )
    camera: Camera = CAMERAS.of(settings).open(settings, context)
    return camera


def open_trigger(
    settings: AnyTriggerSettings,
    stop: threading.Event,
    clock: Clock,
    *,
    camera: str = UNNAMED,
    sinks: Mapping[str, Sink] = MappingProxyType({}),
) -> TriggerSource | None:
    """The trigger source that `settings` describe, not entered yet.

    Args:
        settings: Of any kind.
        stop: Ends its waits.
        clock: Tells when a part was announced.
        camera: The name of the camera that sees the parts.
        sinks: By their names: a receiver of one may announce parts too.

    Returns:
        The source, which has touched nothing; `None`: frames are parts.
    """
    shared = {}
    if isinstance(settings, SinkTriggerSettings):
        shared = {"sink": sinks[settings.sink], "camera": camera}
    source: TriggerSource | None = TRIGGERS.of(settings).open(settings, stop, clock, **shared)
    return source


def open_service(settings: AnyServiceSettings, watched: Watched) -> Service:
    """The service that `settings` describe, not entered yet; it reads the agent `watched`."""
    service: Service = SERVICES.of(settings).open(settings, watched)
    return service


def open_sink(
    settings: AnySinkSettings, *, agent_id: str, is_alarm: Callable[[Part], bool]
) -> Sink:
    """The sink that `settings` describe, not connected yet.

    Args:
        settings: Of any kind.
        agent_id: Whose events these are.
        is_alarm: Whether an ended part has to be looked after.
    """
    sink: Sink = SINKS.of(settings).open(settings, agent_id=agent_id, is_alarm=is_alarm)
    return sink
