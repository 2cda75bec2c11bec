"""CIFAR-10 from its standard Python batches: one class is normal, all others are anomalies.

The files are pickles; only what such a batch holds is unpickled.
"""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

CLASSES: Final = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
_SIDE: Final = 32
_TRAIN: Final = tuple(f"data_batch_{number}" for number in range(1, 6))
_ALLOWED: Final = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.numeric", "_frombuffer"),
    ("_codecs", "encode"),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """uint8 RGB `(N, 32, 32, 3)`, and the class of each as its place in `CLASSES`."""

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def of(self, label: int) -> npt.NDArray[np.uint8]:
        return self.pixels[self.labels == label]


def read_cifar(folder: Path) -> tuple[Images, Images]:
    """The training and the test images in `folder`, where `data_batch_1` and the others lie.

    Raises `ValueError` for a file that is no such batch.
    """
    return _joined([folder / name for name in _TRAIN]), _joined([folder / "test_batch"])


def _joined(paths: list[Path]) -> Images:
    batches = [_batch(path) for path in paths]
    return Images(
        pixels=np.concatenate([batch.pixels for batch in batches]),
        labels=np.concatenate([batch.labels for batch in batches]),
    )


def _batch(path: Path) -> Images:
    with path.open("rb") as file:
        try:
            found = _Unpickler(file, encoding="bytes").load()
            data, labels = np.asarray(found[b"data"]), np.asarray(found[b"labels"], np.int64)
        except (pickle.UnpicklingError, EOFError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no Python batch of CIFAR-10 ({error})") from None
    if data.dtype != np.uint8 or data.shape != (len(labels), 3 * _SIDE**2):
        raise ValueError(f"{path} is no batch of {_SIDE} × {_SIDE} RGB images: {data.shape}")
    # Each row has all of red, then green, then blue.
    pixels = data.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
    return Images(pixels=np.ascontiguousarray(pixels), labels=labels)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it holds {module}.{name}")
        return super().find_class(module, name)
