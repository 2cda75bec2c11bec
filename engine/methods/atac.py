"""ATAC-Net: two passes of one network over a frame, the second one closer where it attended."""

from time import perf_counter
from typing import TYPE_CHECKING, Final, Literal, Protocol, Self

from pydantic import model_validator

from engine.attention import CropSpec, attention_box
from engine.backends.base import Backend
from engine.bundle import MANIFEST, Bundle
from engine.errors import BundleError
from engine.frame import Box, Inspection, Pass, Pixels
from engine.inspector import OpenInspector
from engine.methods import MethodSpec
from engine.score import ScoreSpec, deviation, top_k_mean
from engine.spec import spec
from engine.view import ViewSpec, view, zoomed

if TYPE_CHECKING:
    from engine.gpu.device import DeviceOpening

OUTPUTS: Final = ("score_map", "attention")
"""What the network gives: a_mp (Eq 3 and 7), signed, and C_attn (Eq 4), not negative."""


@spec
class AtacMethod(MethodSpec):
    """How views, boxes and scores are made; the network's outputs are `OUTPUTS`, of one size."""

    type: Literal["atac"] = "atac"
    view: ViewSpec
    crop: CropSpec
    score: ScoreSpec

    @model_validator(mode="after")
    def _maps(self) -> Self:
        shapes = [self.network.outputs.get(name, ()) for name in OUTPUTS]
        if len(self.network.outputs) != 2 or len(shapes[0]) != 2 or shapes[0] != shapes[1]:
            raise ValueError(f"the network should have {' and '.join(OUTPUTS)}, maps of one size")
        if self.network.side != self.view.side:
            raise ValueError("the network should take views of the size that is made")
        return self

    def on_device(self, opening: "DeviceOpening", *, max_pixels: int) -> OpenInspector:
        """Views, boxes and scores too are made on the GPU."""
        from engine.gpu.inspector import DeviceInspector

        return DeviceInspector(opening, self, self.network, max_pixels=max_pixels)


def atac_of(bundle: Bundle) -> AtacMethod:
    """How `bundle` makes views, boxes and scores; `BundleError` where it is of another method."""
    method = bundle.manifest.method
    if not isinstance(method, AtacMethod):
        raise BundleError(str(bundle.path / MANIFEST), "is of another method than atac")
    return method


def open(method: AtacMethod, backend: Backend) -> "TwoPassInspector":
    """The two passes over an open backend."""
    return TwoPassInspector(backend, method)


class Optics(Protocol):
    """How views, boxes and scores are made: an `AtacMethod`, or a model still in training."""

    @property
    def view(self) -> ViewSpec: ...

    @property
    def crop(self) -> CropSpec: ...

    @property
    def score(self) -> ScoreSpec: ...


class TwoPassInspector:
    """The two passes over an open backend, views and boxes on the host."""

    def __init__(self, backend: Backend, optics: Optics) -> None:
        self._backend = backend
        self._optics = optics

    def inspect(self, pixels: Pixels) -> Inspection:
        """Inspect uint8 `pixels`, `(H, W)` mono or `(H, W, 3)` RGB, of any size.

        A box that covers the whole frame would repeat pass 1 exactly, so pass 2 is skipped.
        """
        spec, crop, scoring = self._optics.view, self._optics.crop, self._optics.score
        frame_box = Box.around(pixels)

        t0 = perf_counter()
        whole = view(pixels, frame_box, spec)
        t1 = perf_counter()
        first = self._backend.run(whole[None])
        t2 = perf_counter()
        attention, score_map = first["attention"][0], first["score_map"][0]
        score = score_1 = top_k_mean(score_map, scoring.top_k)
        passes = [Pass(box=frame_box, score=score_1, view_s=t1 - t0, network_s=t2 - t1)]
        box = attention_box(attention, spec.box, crop)
        t3 = perf_counter()
        if box != spec.box:
            closer, frame_box = zoomed(pixels, whole, box, spec)
            t4 = perf_counter()
            second = self._backend.run(closer[None])
            score_2 = top_k_mean(second["score_map"][0], scoring.top_k)
            t5 = perf_counter()
            passes.append(Pass(box=frame_box, score=score_2, view_s=t4 - t3, network_s=t5 - t4))
            score = (score_1 + score_2) / 2

        return Inspection(
            score=score,
            deviation=deviation(score, scoring),
            passes=tuple(passes),
            attention=attention,
            score_map=score_map,
            attention_s=t3 - t2,
        )
