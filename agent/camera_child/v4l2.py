"""The child of a camera of Video4Linux2: OpenCV's own reader."""

from multiprocessing.connection import Connection
from typing import Any, Final

from agent.camera_child import stream
from agent.camera_child.capture import Capture

_OPEN_S: Final = 5.0


def serve(
    connection: Connection,
    memory: int,
    *,
    device: str,
    width: int | None,
    height: int | None,
    rate: float | None,
    fourcc: str | None,
    silent_s: float,
) -> None:
    """Give the newest frames of the device."""

    def opened() -> Any:
        import cv2  # noqa: PLC0415 - only where it is used

        capture = cv2.VideoCapture(device, cv2.CAP_V4L2)
        if fourcc is not None:
            capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*fourcc))
        wanted = {
            cv2.CAP_PROP_FRAME_WIDTH: width,
            cv2.CAP_PROP_FRAME_HEIGHT: height,
            cv2.CAP_PROP_FPS: rate,
        }
        for key, value in wanted.items():
            if value is not None:
                capture.set(key, value)
        return capture

    remedy = f"that {device} is there, and that no other program uses it"
    stream.serve(
        connection, Capture(memory, opened, remedy=remedy, open_s=_OPEN_S, silent_s=silent_s)
    )
