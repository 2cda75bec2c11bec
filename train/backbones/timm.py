"""Any model of timm (Wightman 2019) that gives feature maps or patch tokens.

`levels` count the feature maps that timm knows of a model: of a CNN its stages, of a transformer
its blocks, whose tokens are brought back to their places. timm comes with the extra `timm`.
"""

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Final, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from engine.errors import ConfigurationError
from engine.extras import install
from engine.spec import spec
from train.backbones import Backbone, BackboneSettings
from train.weights import Weights

_PREFIX: Final = "timm:"
# Where stages of these strides end in ResNet-50, as a share of its blocks.
_DEPTHS: Final = {8: 7 / 16, 16: 13 / 16, 32: 1.0}


@spec
class Timm(BackboneSettings):
    """The feature maps `levels` of timm's model `model`, and their strides."""

    names: ClassVar = "timm:NAME"
    type: Literal["timm"] = "timm"
    model: str
    levels: Annotated[tuple[int, ...], Field(min_length=1)]
    level_strides: tuple[int, ...]

    @property
    def label(self) -> str:
        return f"{_PREFIX}{self.model} {'+'.join(str(level) for level in self.levels)}"

    @property
    def where_from(self) -> str:
        return "give the path of a checkpoint of this model, or 'download' to let timm fetch it"

    @property
    def strides(self) -> tuple[int, ...]:
        return self.level_strides

    @classmethod
    def named(cls, name: str, strides: tuple[int, ...]) -> Self | None:
        """As `BackboneSettings.named`, for `timm:NAME`.

        Of a model with maps of several strides, the deepest map of each wanted stride. Where all
        strides are equal, as in transformers, the maps at the same share of its depth.
        """
        if not name.startswith(_PREFIX):
            return None
        model = name.removeprefix(_PREFIX)
        have = _strides(model)
        if len(set(have)) > 1:
            levels = [level for level, each in enumerate(have) if each in strides]
            levels = [level for level in levels if have[level] not in have[level + 1 :]]
        else:
            levels = [max(0, round(_DEPTHS.get(s, 1.0) * len(have)) - 1) for s in strides]
        if not levels:
            raise ConfigurationError(
                "--backbone", name, f"has maps of strides {have}, and none of {strides}"
            )
        levels = sorted(set(levels))
        return cls(
            model=model, levels=tuple(levels), level_strides=tuple(have[level] for level in levels)
        )

    def up_to(self, stage: str) -> Self:
        have = _strides(self.model)
        if not stage.isdecimal() or int(stage) >= len(have):
            raise ConfigurationError(
                "--stage", stage, f"{self.model} has the levels 0 … {len(have) - 1}"
            )
        levels = (*(level for level in self.levels if level < int(stage)), int(stage))
        return replace(self, levels=levels, level_strides=tuple(have[level] for level in levels))

    def download(self) -> Weights:
        """As `BackboneSettings.download`: from where timm's own list of weights says."""
        try:
            model = _timm().create_model(self.model, pretrained=True)
        except Exception as error:  # of the network, of the hub, of the file
            raise ConfigurationError(
                "--backbone-weights",
                "download",
                f"timm cannot fetch {self.model} ({str(error).splitlines()[0]}); "
                "give the path of a checkpoint instead",
            ) from error
        return Weights(source=f"timm {self.model}", tensors=model.state_dict())


def open(settings: Timm, *, side: int) -> "TimmBackbone":
    """Build the model that `settings` name for views of `side` pixels, with random parameters."""
    return TimmBackbone(settings, side)


class TimmBackbone(Backbone):
    """A timm model without what comes after the deepest of its levels."""

    int8_operators = (*Backbone.int8_operators, "MatMul")

    def __init__(self, settings: Timm, side: int) -> None:
        super().__init__()
        self._settings = settings
        self._side = side
        self.model = self._made(None)
        configured = self.model.pretrained_cfg
        self.standardisation = tuple(configured["mean"]), tuple(configured["std"])
        known = self.model.feature_info
        self.channels = tuple(known[level]["num_chs"] for level in settings.levels)
        self.strides = settings.level_strides
        self._levels = self._pruned(self.model)

    def maps(self, x: Tensor) -> list[Tensor]:
        found: list[Tensor] = self.model.forward_intermediates(
            x, indices=self._levels, stop_early=True, output_fmt="NCHW", intermediates_only=True
        )
        return found

    def load(self, weights: Weights) -> None:
        """As `Backbone.load`; timm fits a checkpoint to the model, such as its position tokens."""
        try:
            fitted = self._made(weights)
        except (RuntimeError, KeyError) as error:
            raise ConfigurationError(
                "--backbone-weights",
                weights.source,
                f"does not fit {self._settings.model} ({' '.join(str(error).split())[:200]}); "
                "is --backbone right?",
            ) from error
        self._pruned(fitted)
        self.model.load_state_dict(fitted.state_dict())

    def _made(self, weights: Weights | None) -> Any:
        timm, name = _timm(), self._settings.model
        options: dict[str, Any] = {"pretrained": False}
        if weights is not None:
            overlay = {"state_dict": dict(weights.tensors)}
            options = {"pretrained": True, "pretrained_cfg_overlay": overlay}
        try:
            return timm.create_model(name, img_size=self._side, **options)
        except TypeError:  # a CNN takes views of any size and does not know the option
            return timm.create_model(name, **options)

    def _pruned(self, model: Any) -> list[int]:
        """Take away what comes after the deepest level; the levels as `model` counts them now."""
        levels = list(self._settings.levels)
        return list(model.prune_intermediate_layers(levels, prune_norm=True, prune_head=True))


def _strides(name: str) -> tuple[int, ...]:
    """The strides of all feature maps that timm knows of the model `name`, level by level."""
    try:
        with torch.device("meta"):  # without memory for parameters
            model = _timm().create_model(name, pretrained=False)
    except RuntimeError as error:
        raise ConfigurationError("--backbone", f"{_PREFIX}{name}", str(error)) from error
    if not hasattr(model, "forward_intermediates"):
        raise ConfigurationError(
            "--backbone", f"{_PREFIX}{name}", "gives neither feature maps nor patch tokens"
        )
    return tuple(each["reduction"] for each in model.feature_info)


def _timm() -> Any:
    try:
        import timm  # noqa: PLC0415 - an optional package, and slow to import
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision is for another torch
        raise ConfigurationError(
            "--backbone",
            "timm",
            f"cannot be imported ({error}); {install('timm')}, and a torchvision that is made for "
            "this torch",
        ) from error
    return timm
