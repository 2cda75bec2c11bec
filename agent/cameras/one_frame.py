"""The next frame of a camera for those who have no line: doctor, calibration, golden samples."""

from agent.ports import Camera, Fired
from engine.errors import ImageError
from engine.frame import Frame


def one_frame(camera: Camera) -> Frame | None:
    """The next frame; a camera that waits for the agent is told to expose first.

    `None` when there are no more. Raises `ImageError` for one that may not be inspected.
    """
    if isinstance(camera, Fired) and camera.fires:
        camera.fire()
    frame = camera.read()
    if frame is not None and frame.problem is not None:
        raise ImageError(f"frame {frame.number}", frame.problem)
    return frame
