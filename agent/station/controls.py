"""What requests may change while the line runs."""

import threading
from dataclasses import dataclass, field

from agent.station.threshold import Threshold


@dataclass(frozen=True, slots=True, kw_only=True)
class Controls:
    """The threshold in force, and `paused`: while it is set no part is inspected."""

    threshold: Threshold
    paused: threading.Event = field(default_factory=threading.Event)
