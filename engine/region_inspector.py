"""An inspector that inspects the regions of a frame, and answers for the frame."""

from dataclasses import replace
from typing import TYPE_CHECKING, Self

from engine.frame import Box, FoundRegion, Inspection, Pixels
from engine.inspector import OpenInspector
from engine.region import Regions, over_frame

if TYPE_CHECKING:
    from engine.methods import MethodSpec


def in_regions(method: "MethodSpec", inspector: OpenInspector) -> OpenInspector:
    """`inspector` for the regions of `method`; for whole frames where it has none."""
    return (
        inspector
        if method.regions is None
        else _RegionInspector(inspector, Regions(method.regions))
    )


class _RegionInspector:
    """A frame's inspection is that of its worst region; maps show all of them."""

    def __init__(self, inspector: OpenInspector, regions: Regions) -> None:
        self._inspector = inspector
        self._regions = regions

    @property
    def name(self) -> str:
        return self._inspector.name

    @property
    def workers(self) -> int:
        return self._inspector.workers

    def warm_up(self) -> None:
        self._inspector.warm_up()

    def lend(self, memory: Pixels | None) -> None:
        self._inspector.lend(memory)

    def inspect(self, pixels: Pixels) -> Inspection:
        frame, cuts = Box.around(pixels), self._regions.cut(pixels)
        found = [self._inspector.inspect(cut.pixels) for cut in cuts]
        cut, worst = max(zip(cuts, found, strict=True), key=lambda pair: pair[1].score)
        return replace(
            worst,
            passes=tuple(replace(each, box=cut.in_frame(each.box, frame)) for each in worst.passes),
            attention=over_frame(zip(cuts, (one.attention for one in found), strict=True), frame),
            score_map=over_frame(zip(cuts, (one.score_map for one in found), strict=True), frame),
            regions=tuple(
                FoundRegion(name=cut.name, box=cut.box, score=one.score, corners=cut.corners)
                for cut, one in zip(cuts, found, strict=True)
            ),
        )

    def __enter__(self) -> Self:
        self._inspector.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._inspector.__exit__(*error)
