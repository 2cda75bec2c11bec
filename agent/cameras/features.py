"""A camera's features in a configuration: their SFNC names and the values to be written."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, StringConstraints

from agent.settings_values import Text

FeatureName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=128)]
FeatureValue = bool | int | float | Text


def _pairs(value: Any) -> Any:
    """One mapping, or a list of them where a feature is written more than once."""
    several = value if isinstance(value, list) else [value]
    if not all(isinstance(each, Mapping) for each in several):
        if isinstance(value, tuple):  # what has been read already
            return value
        raise ValueError("should hold features with their values, such as ExposureTime: 4000")
    return tuple(tuple(pair) for each in several for pair in each.items())


Features = Annotated[tuple[tuple[FeatureName, FeatureValue], ...], BeforeValidator(_pairs)]
"""Features in the order in which they are written to the camera."""


def feature(features: Features, name: str) -> FeatureValue | None:
    """The value that `name` is given last; `None`: none."""
    return dict(features).get(name)


def is_on(value: FeatureValue | None) -> bool:
    """Whether an enumeration of On and Off is on; YAML takes these words for true and false."""
    return value is True or value == "On"
