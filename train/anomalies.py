"""Pseudo-defects: good parts with something wrong painted in, and the mask of where.

Each kind is one function `(pixels, donor, rng) -> (pixels, mask)` over native frames. Painting
comes before CLAHE, as a real defect would (spec §6.4).
"""

from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from engine.frame import Pixels

Mask = npt.NDArray[np.bool_]
"""Bool `(H, W)`, True where the part is defective; in the pixels of its frame."""

# Geometry of D19: share of the image area, sides' ratio (log-uniform), brightness jitter.
_AREA: Final = (0.02, 0.15)
_ASPECT: Final = (0.3, 3.3)
_JITTER: Final = 0.1
_TRIES: Final = 20


def cutmix(pixels: Pixels, donor: Pixels, rng: np.random.Generator) -> tuple[Pixels, Mask]:
    """`pixels` with a rectangle of `donor` pasted elsewhere, a little brighter or darker (D19).

    Both are uint8 of one kind (mono or RGB), of any sizes. Neither is changed. A patch that
    happens to leave the picture as it was is drawn again.
    """
    height, width = pixels.shape[:2]
    changed = pixels.copy()
    mask = np.zeros((height, width), dtype=np.bool_)
    for _ in range(_TRIES):
        patch_height, patch_width = _patch_size(
            min(height, donor.shape[0]), min(width, donor.shape[1]), rng
        )
        top = int(rng.integers(height - patch_height + 1))
        left = int(rng.integers(width - patch_width + 1))
        from_top = int(rng.integers(donor.shape[0] - patch_height + 1))
        from_left = int(rng.integers(donor.shape[1] - patch_width + 1))
        gain = rng.uniform(1 - _JITTER, 1 + _JITTER)
        patch = donor[from_top : from_top + patch_height, from_left : from_left + patch_width]
        window = (slice(top, top + patch_height), slice(left, left + patch_width))
        pasted = np.clip(np.rint(patch * gain), 0, 255).astype(np.uint8)
        if not np.array_equal(pasted, pixels[window]):
            changed[window] = pasted
            mask[window] = True
            return changed, mask
    # Only a picture without any content defeats every try; a hole is a defect in it too.
    changed[window] = 255 - pixels[window]
    mask[window] = True
    return changed, mask


def _patch_size(height: int, width: int, rng: np.random.Generator) -> tuple[int, int]:
    area = rng.uniform(*_AREA) * height * width
    aspect = float(np.exp(rng.uniform(*np.log(_ASPECT))))
    return (
        min(height, max(1, round(float(np.sqrt(area / aspect))))),
        min(width, max(1, round(float(np.sqrt(area * aspect))))),
    )


def alike(donor: Pixels, pixels: Pixels) -> Pixels:
    """`donor` as mono or RGB, whichever `pixels` is."""
    if donor.ndim == pixels.ndim:
        return donor
    code = cv2.COLOR_GRAY2RGB if pixels.ndim == 3 else cv2.COLOR_RGB2GRAY
    return np.asarray(cv2.cvtColor(donor, code), dtype=np.uint8)
