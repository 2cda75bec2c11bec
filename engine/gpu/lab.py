"""The tables of OpenCV's 8-bit CIE LAB, for kernels that convert colours in integers."""

from typing import Final

import numpy as np
import numpy.typing as npt

_ONE: Final = 1 << 14
_CUBE_FIRST: Final = -8145
_CUBE_ENTRIES: Final = _ONE * 9 // 4
_ROOT_ENTRIES: Final = 3072
_INVERSE_ENTRIES: Final = 4096


def lab_tables() -> npt.NDArray[np.int32]:
    """All tables one after another, int32, in the order that cuda/view.cu names.

    sRGB → linear (256, in 1/2040); cube root as in LAB (3072 entries of 1/2040, in 1/2¹⁵);
    L → Y and L → f(Y) (256 each, in 1/2¹⁴); f → X or Z (36 864 entries from −8145, each in 1/2¹⁴);
    linear → sRGB (4096 entries, 0 to 255). Constants are those of CIE LAB as OpenCV rounds them.
    """
    level = np.arange(256) / 255
    gamma = 2040 * np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)
    linear = np.arange(_ROOT_ENTRIES) / 2040
    root = (1 << 15) * np.where(linear < 0.008856, linear * 7.787 + 16 / 116, np.cbrt(linear))
    lightness = np.arange(256) * 100 / 255
    dark = lightness <= 0.008856 * 903.3
    f = np.where(dark, lightness / 903.3 * 7.787 + 16 / 116, (lightness + 16) / 116)
    y = np.where(dark, lightness / 903.3, f**3)
    place = np.arange(_CUBE_FIRST, _CUBE_FIRST + _CUBE_ENTRIES, dtype=np.int64)
    # C divides towards zero, in this order; the dark part is a straight line.
    straight = np.trunc(place * 108 / 841) - _ONE * 16 // 116 * 108 // 841
    cube = np.where(place <= 3390, straight, place * place // _ONE * place // _ONE)
    share = np.arange(_INVERSE_ENTRIES) / _INVERSE_ENTRIES
    inverse = 255 * np.where(share <= 0.0031308, share * 12.92, 1.055 * share ** (1 / 2.4) - 0.055)
    tables = (gamma, root, _ONE * y, _ONE * f, cube, inverse)
    return np.concatenate([np.rint(table) for table in tables]).astype(np.int32)
