"""Parts of one's own choice, for what is done with them."""

import numpy as np

from agent.part import Part, State, Trigger, Verdict
from engine.frame import Frame, Inspection, Pixels

PIXELS = np.zeros((2, 2), np.uint8)


def part(sequence: int = 1, *, camera: str = "main", pixels: Pixels = PIXELS) -> Part:
    """A part whose frame has come; its frame's number is one less than its sequence."""
    return Part(
        trigger=Trigger(sequence=sequence, camera=camera, triggered_ns=0),
        received=0.0,
        part_id=f"p{sequence}",
        frame=Frame(pixels=pixels, number=sequence - 1, captured_ns=0),
    )


def ended(
    sequence: int,
    state: State,
    *,
    threshold: float = 2.0,
    inspection: Inspection | None = None,
    pixels: Pixels = PIXELS,
) -> Part:
    """A part that has its verdict."""
    made = part(sequence, pixels=pixels)
    made.inspection = inspection
    made.verdict = Verdict(state=state, decided_ns=0, threshold=threshold)
    return made
