from collections.abc import Iterator
from pathlib import Path
from typing import Self

import numpy as np
import pytest

from engine.backends.base import Outputs
from engine.backends.onnxruntime import OnnxRuntimeBackend
from engine.bundle import Bundle
from engine.errors import BackendError, BundleError, InspectionError
from engine.frame import Box, Inspection, Map, Pixels
from engine.methods import open_method
from engine.methods.atac import atac_of
from engine.score import ScoreSpec, top_k_mean
from engine.view import ViewSpec, view, zoomed
from tests.tiny_bundle import defective_part, good_part, tiny_bundle


class Scripted:
    """A backend that answers the given maps, pass by pass, and keeps what it was shown."""

    name = "scripted"

    def __init__(self, *answers: tuple[Map, Map]) -> None:
        self.shown: list[Pixels] = []
        self._answers = iter(answers)

    def run(self, views: Pixels) -> Outputs:
        self.shown.append(views)
        score_map, attention = next(self._answers)
        return {"score_map": score_map[None], "attention": attention[None]}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


def flat(value: float) -> Map:
    return np.full((8, 8), value, np.float32)


def peak(value: float = 1.0) -> Map:
    attention = np.zeros((8, 8), np.float32)
    attention[4, 4] = value
    return attention


def pass_scores(found: Inspection) -> list[float]:
    return [each.score for each in found.passes]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny_bundle(tmp_path / "bundle")


@pytest.fixture
def backend(bundle: Bundle) -> Iterator[OnnxRuntimeBackend]:
    with OnnxRuntimeBackend(bundle, threads=1) as opened:
        yield opened


def test_a_good_part_is_seen_whole_in_one_run(bundle: Bundle) -> None:
    backend = Scripted((flat(2), flat(0)))
    found = open_method(bundle.manifest.method, backend).inspect(good_part(0))
    assert len(backend.shown) == 1
    assert pass_scores(found) == [2.0]
    assert found.score == 2.0
    assert not found.zoomed
    assert found.box == Box.whole(96, 80)
    assert list(found.stages) == ["view_1", "pass_1", "attention"]


def test_a_peak_is_seen_twice_and_the_scores_are_averaged(bundle: Bundle) -> None:
    backend = Scripted((flat(2), peak()), (flat(6), flat(0)))
    pixels = good_part(0)
    found = open_method(bundle.manifest.method, backend).inspect(pixels)
    assert len(backend.shown) == 2
    assert pass_scores(found) == [2.0, 6.0]
    assert found.score == 4.0  # Eq 10
    assert found.zoomed
    # 8×8 → 64×64 spreads one patch over view pixels 31 to 40; the box in the frame holds them.
    assert found.box == Box(left=46, top=38, right=62, bottom=52)
    assert np.array_equal(backend.shown[1][0], view(pixels, found.box, atac_of(bundle).view))
    assert np.array_equal(found.attention, peak())
    assert np.array_equal(found.score_map, flat(2))


def test_a_full_box_means_that_pass_2_would_repeat_pass_1_exactly(
    bundle: Bundle, backend: OnnxRuntimeBackend
) -> None:
    spec, share = atac_of(bundle).view, atac_of(bundle).score.top_k
    for seed in range(5):
        pixels = good_part(seed)
        found = open_method(bundle.manifest.method, backend).inspect(pixels)
        whole = view(pixels, Box.around(pixels), spec)
        again, _ = zoomed(pixels, whole, spec.box, spec)
        second = top_k_mean(backend.run(again[None])["score_map"][0], share)
        assert not found.zoomed
        assert [second] == pass_scores(found) == [found.score]


def test_the_skip_is_exact_for_the_papers_view_too(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path, view=ViewSpec(side=64))
    pixels = good_part(0)
    whole = view(pixels, Box.around(pixels), atac_of(bundle).view)
    again, box = zoomed(pixels, whole, atac_of(bundle).view.box, atac_of(bundle).view)
    assert np.array_equal(again, whole)
    assert box == Box.around(pixels)


def test_a_defect_is_found_where_it_is(bundle: Bundle, backend: OnnxRuntimeBackend) -> None:
    pixels = good_part(3, width=400, height=300)
    pixels[60:80, 250:270] = 0
    found = open_method(bundle.manifest.method, backend).inspect(pixels)
    assert found.zoomed
    assert found.box.left <= 250
    assert found.box.right >= 270
    assert found.box.top <= 60
    assert found.box.bottom >= 80
    assert found.box.width * found.box.height < 400 * 300 / 8
    good = open_method(bundle.manifest.method, backend).inspect(good_part(3, width=400, height=300))
    assert found.score > 3 * good.score


def test_the_deviation_uses_the_bundles_reference(bundle: Bundle) -> None:
    from dataclasses import replace

    score = ScoreSpec(reference_mean=0.5, reference_std=2.0)
    method = replace(atac_of(bundle), score=score)
    found = open_method(method, Scripted((flat(4.5), flat(0)))).inspect(good_part(0))
    assert found.deviation == 2.0


def test_mono_frames_of_any_size_are_inspected(bundle: Bundle, backend: OnnxRuntimeBackend) -> None:
    inspector = open_method(bundle.manifest.method, backend)
    for shape in ((1, 1), (1, 1, 3), (7, 500), (501, 333, 3)):
        pixels = np.full(shape, 90, np.uint8)
        assert inspector.inspect(pixels).box.right <= shape[1]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("broken", [1, 2])
def test_a_score_that_is_no_number_is_an_error_and_never_a_pass(
    bundle: Bundle, value: float, broken: int
) -> None:
    answers = [(flat(2), peak()), (flat(2), flat(0))]
    answers[broken - 1] = (flat(value), answers[broken - 1][1])
    with pytest.raises(InspectionError, match="scripted answered a score of"):
        open_method(bundle.manifest.method, Scripted(*answers)).inspect(good_part(0))


def test_one_nan_cell_is_enough(bundle: Bundle) -> None:
    score_map = flat(1)
    score_map[7, 7] = np.nan
    with pytest.raises(InspectionError):
        open_method(bundle.manifest.method, Scripted((score_map, flat(0)))).inspect(good_part(0))


def test_one_view_scores_as_it_does_in_a_batch(bundle: Bundle, backend: OnnxRuntimeBackend) -> None:
    parts = [good_part(0), defective_part(1), good_part(2)]
    views = np.stack([view(p, Box.around(p), atac_of(bundle).view) for p in parts])
    together = backend.run(views)
    for index in range(3):
        alone = backend.run(views[index : index + 1])
        assert np.abs(alone["score_map"][0] - together["score_map"][index]).max() <= 1e-4


def test_views_of_a_wrong_shape_are_a_backend_error(backend: OnnxRuntimeBackend) -> None:
    with pytest.raises(BackendError, match=r"onnxruntime cpu fp32 failed on \(1, 32, 32, 3\)"):
        backend.run(np.zeros((1, 32, 32, 3), np.uint8))


def test_a_network_that_is_no_onnx_model_is_refused(tmp_path: Path) -> None:
    from dataclasses import replace

    from engine.bundle import sha256, write_manifest

    bundle = tiny_bundle(tmp_path)
    (tmp_path / "network.onnx").write_bytes(b"not a model")
    files = {"network.onnx": sha256(b"not a model")}
    broken = write_manifest(tmp_path, replace(bundle.manifest, files=files))
    with pytest.raises(BundleError, match="is not an ONNX model"):
        OnnxRuntimeBackend(broken)
