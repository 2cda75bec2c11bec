"""Scores of a training's own images, each by a model that has not seen that image.

A recipe that has them gives them to its bundle, so that good parts which trained also set the
threshold. They are scores of other models than the deployed one, and so are no proof of what it
does: `calibration.record` keeps the two apart.

Pictures of the most doubtful parts lie in a file of their own, which the manifest does not name: as
a bundle's pages, it can be removed from one that is given to others.
"""

from typing import Annotated, Final, Literal

from pydantic import Field, TypeAdapter, ValidationError

from engine.bundle import Bundle, Sha256, sha256
from engine.errors import BundleError
from engine.frame import Box
from engine.regular_file import read_regular
from engine.spec import spec

CROSS_FITTED: Final = "cross_fitted.json"
PICTURES: Final = "cross_fitted_pictures.json"
_MAX_BYTES: Final = 16_000_000


@spec
class CrossFittedPart:
    """One image and its score, on the scale of the deployed fp32 network's.

    `path`, `sha256` and `kind` are those of the split. `box` is where in the frame the score comes
    from.
    """

    path: str
    sha256: Sha256
    kind: str
    score: float
    box: Box | None = None


@spec
class CrossFitted:
    """What models that left images out make of these images.

    `folds` models were made, for `leave_one_out` one an image. `good` has all good images that were
    learnt from, and those held out, which the deployed model has scored. `defective` has known
    defects; none where no model left them out. `look_alikes` of the good images look like another
    one: if they show the same part, a model that left one of them out has still seen it.
    `pictures_sha256` is the hash of the file of pictures.
    """

    way: Literal["leave_one_out", "folds"]
    folds: Annotated[int, Field(ge=2)]
    good: tuple[CrossFittedPart, ...]
    defective: tuple[CrossFittedPart, ...] = ()
    look_alikes: Annotated[int, Field(ge=0)] = 0
    pictures_sha256: Sha256 | None = None


CROSS_FITTED_JSON: Final = TypeAdapter(CrossFitted)
PICTURES_JSON: Final = TypeAdapter(dict[str, str])
"""JPEG files in base64, of parts that a person should look at, by the path of the part."""


def cross_fitted_of(bundle: Bundle) -> CrossFitted | None:
    """The cross-fitted scores in `bundle`; None where it has none."""
    if CROSS_FITTED not in bundle.manifest.files:
        return None
    try:
        return CROSS_FITTED_JSON.validate_json(bundle.read(CROSS_FITTED))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise BundleError(
            str(bundle.path / CROSS_FITTED), f"holds no scores ({place}: {first['msg']})"
        ) from error


def pictures_in(bundle: Bundle, scores: CrossFitted) -> dict[str, str]:
    """The pictures beside the `scores` of `bundle`, as in `PICTURES_JSON`; they may be gone."""
    file = bundle.path / PICTURES
    try:
        data = read_regular(file, limit=_MAX_BYTES)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise BundleError(str(file), f"cannot be read ({error.strerror})") from error
    if sha256(data) != scores.pictures_sha256:
        raise BundleError(str(file), "is not the file that training wrote; remove it")
    return PICTURES_JSON.validate_json(data)
