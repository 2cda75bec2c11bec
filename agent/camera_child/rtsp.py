"""The child of an RTSP camera: OpenCV's FFmpeg.

FFmpeg takes its options from the environment, so each camera needs a process; user and password
come by the socket, and are seen by nobody else.
"""

import os
from multiprocessing.connection import Connection
from typing import Any
from urllib.parse import quote

from agent.camera_child import stream
from agent.camera_child.capture import Capture


def serve(
    connection: Connection,
    memory: int,
    *,
    url: str,
    transport: str,
    user: str | None,
    password: str | None,
    open_s: float,
    silent_s: float,
) -> None:
    """Give the newest frames of the stream."""
    os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = (
        f"rtsp_transport;{transport}|fflags;nobuffer|flags;low_delay"
        "|protocol_whitelist;rtsp,rtsps,rtp,srtp,tcp,udp,tls,crypto"
    )
    if user is not None:
        scheme, _, rest = url.partition("://")
        secret = "" if password is None else f":{quote(password, safe='')}"
        url = f"{scheme}://{quote(user, safe='')}{secret}@{rest}"

    def opened() -> Any:
        import cv2  # noqa: PLC0415 - after its options are in the environment

        limits = [
            *(cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, round(open_s * 1e3)),
            *(cv2.CAP_PROP_READ_TIMEOUT_MSEC, round(silent_s * 1e3)),
        ]
        return cv2.VideoCapture(url, cv2.CAP_FFMPEG, limits)

    remedy = "power, network, the path in url, user and password"
    stream.serve(
        connection, Capture(memory, opened, remedy=remedy, open_s=open_s, silent_s=silent_s)
    )
