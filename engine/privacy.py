"""What libraries would tell their makers is switched off before they are imported."""

import os
from typing import Final

_OFF: Final = {
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime: events, and a device id below the user's cache
    "HF_HUB_DISABLE_TELEMETRY": "1",  # timm's download of weights
    "RAY_USAGE_STATS_ENABLED": "0",  # of a cluster that is begun here
    "DO_NOT_TRACK": "1",
}


def keep_private() -> None:
    """Switch telemetry off in this process and in those that it starts.

    Whoever imports a library that has any calls it first; libraries look once, when they start.
    """
    os.environ.update(_OFF)
