"""The two recipes, every hyper-parameter in one place.

`PAPER` is the spec's faithful default and never changes. `LINE` is what works best on a line.
A bundle carries the profile it was trained with as `profile.json`.
"""

from typing import Annotated, Final, Literal, Self

from pydantic import Field, TypeAdapter, model_validator

from engine.attention import CropSpec
from engine.spec import spec
from engine.view import ViewSpec
from train.anomalies import Kind

Architecture = Literal["resnet18", "resnet50"]
Stage = Literal["layer2", "layer3", "layer4"]
Form = Literal["v1", "v1.5"]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


@spec
class Profile:
    """One way to build and train the network; the comments give the spec's decision ids."""

    name: Literal["paper", "line"]

    # What the network sees and where it zooms (D1-D7, D25-D27).
    view: ViewSpec
    crop: CropSpec
    standardise: Literal["clip", "imagenet"]

    # φ, the trunk. `form` says where ResNet-50 halves the resolution: in the first 1×1
    # convolution of a stage (v1) or in its 3×3 (v1.5, torchvision); the weights decide.
    # `freeze` keeps the trunk and its BatchNorm as they were pretrained (D22).
    architecture: Architecture
    stages: tuple[Stage, ...]  # D9; several are brought to the finest grid and stacked
    form: Form
    freeze: bool

    # σ and τ (D10, D11). So many `heads` learn side by side, each with its own start, and answer by
    # their mean: what few known defects leave to chance is less of it. `local_mean` averages each
    # feature with its eight neighbours first; `kernel` is the side of σ's convolution. The
    # `attention` map is the mean of σ's rectified features, or has an output of its own,
    # `supervised` by the known masks (spec §5.3). Between the convolution and the outputs the
    # features are refined by SAGAN's self-attention (D10), by one more convolution of each cell,
    # added to what it saw (`residual`), or not at all.
    local_mean: bool
    kernel: Literal[1, 3]
    attention_channels: Count  # of each head
    heads: Count = 1  # older bundles do not name it
    refine: Literal["none", "residual", "self_attention"]
    query_channels: Count  # of the self-attention
    attention: Literal["mean", "supervised"]
    # How σ and τ begin. With He's fan-out (the paper) first scores are as large as the margin, and
    # at this learning rate it takes thousands of steps to bring those of good parts down; scaled
    # by fan-in they begin near zero.
    start: Literal["he", "fan_in"]

    # A memory of good parts: the distance of each cell to the nearest of so many `prototypes` of
    # good features, in a projection of `prototype_channels`, is added to the score map, where one σ
    # of good parts' distances counts as `memory_weight` deviations. Needs a frozen trunk; 0: none.
    # With `unit_cells` cells are of one length, so that they differ by direction, not by contrast.
    prototypes: Annotated[int, Field(ge=0)]
    prototype_channels: Count
    unit_cells: bool = False  # older bundles do not name it
    memory_weight: Positive = 1.0  # older bundles do not name it

    # Score and loss (D12-D16). The loss judges the mean of both passes' scores, or `each` (D23).
    # Where the mask is known, `mask_weight` is λ of the attention's own loss (spec §5.3) and
    # `cell_weight` that of the score map's: Eq 12 for each cell.
    top_k: Share
    loss: Literal["hinge", "literal", "two_sided"]
    loss_of: Literal["mean", "each"]
    margin: Positive  # k of Eq 12
    mask_weight: Annotated[float, Field(ge=0)]
    cell_weight: Annotated[float, Field(ge=0)] = 0.0  # older bundles do not name it
    reference_draws: Count  # standard normal draws behind μ_R and σ_R

    # The defective half of a batch (D17, D19). `real_share` is the chance of a known defect.
    # `moved_each` versions of it are shown, a little shifted, turned and brightened; 0: it is
    # shown as it is. `pseudo_each` pseudo-defects are painted on each good image; 0: a new one
    # every time. What is shown again costs a frozen trunk nothing. `known_masks` lets the masks
    # of known defects teach where the data has them (image labels alone otherwise); that share of
    # the pseudo-defects are then known defects `transplanted` onto good parts.
    pseudo_defects: tuple[Kind, ...]
    real_share: Share
    moved_each: Annotated[int, Field(ge=0)]
    pseudo_each: Annotated[int, Field(ge=0)]
    known_masks: bool
    transplanted: Share = 0.0  # older bundles do not name it
    # Whether pseudo-defects teach the score `always`, or only `beside_masks`: where known defects
    # have none, pseudo-defects then teach attention alone. Without known defects they always do.
    pseudo_scored: Literal["always", "beside_masks"] = "always"  # older bundles do not name it

    # The loop (D18, D21, D24).
    epochs: Count
    batch: Annotated[int, Field(ge=2, multiple_of=2)]  # half good, half defective
    least_steps: Count  # steps an epoch, however few good images there are
    zoom_from: Annotated[int, Field(ge=0)]  # epochs before the first with a pass 2
    # The learning rate falls by the factor `decay` after every `decay_every` epochs (`steps`), or
    # to nothing along half a cosine, from the first step to the last.
    learning_rate: Positive
    schedule: Literal["steps", "cosine"]
    decay_every: Count
    decay: Positive
    clip_norm: Positive

    # Share of the training images kept out: for the parity gate now, for the threshold later.
    hold_out: Annotated[float, Field(ge=0, lt=1)]

    @model_validator(mode="after")
    def _remembers_what_stays(self) -> Self:
        if self.prototypes and not self.freeze:
            raise ValueError("prototypes of good features need a frozen trunk: set freeze")
        return self

    @model_validator(mode="after")
    def _heads_keep_apart(self) -> Self:
        if self.heads > 1 and self.refine == "self_attention":
            raise ValueError("self-attention would mix the heads: set heads to 1")
        return self


PAPER: Final = Profile(
    name="paper",
    view=ViewSpec(side=224, equalise="before_resize", crop_from="view"),
    crop=CropSpec(omega=0.40),
    standardise="clip",
    architecture="resnet50",
    stages=("layer4",),
    form="v1.5",
    freeze=False,
    local_mean=False,
    kernel=3,
    attention_channels=64,
    refine="self_attention",
    query_channels=8,
    attention="mean",
    start="he",
    prototypes=0,
    prototype_channels=64,
    top_k=0.10,
    loss="hinge",
    loss_of="mean",
    margin=10.0,
    mask_weight=0.0,
    cell_weight=0.0,
    reference_draws=5000,
    pseudo_defects=("cutmix",),
    real_share=0.5,
    moved_each=0,
    pseudo_each=0,
    known_masks=False,
    pseudo_scored="always",
    epochs=30,
    batch=16,
    least_steps=20,
    zoom_from=0,
    learning_rate=1e-3,
    schedule="steps",
    decay_every=10,
    decay=0.1,
    clip_norm=1.0,
    hold_out=0.0,
)

LINE: Final = Profile(
    name="line",
    view=ViewSpec(side=224, equalise="after_resize", crop_from="frame", reducing_gap=2.0),
    crop=CropSpec(omega=0.40, gate=0.5, padding=0.1, min_side=96, square=True),
    standardise="imagenet",
    architecture="resnet50",
    stages=("layer2", "layer3"),
    form="v1.5",
    freeze=True,
    local_mean=True,
    kernel=1,
    attention_channels=64,
    heads=4,
    refine="residual",
    query_channels=8,
    attention="supervised",
    start="fan_in",
    prototypes=768,
    prototype_channels=128,
    unit_cells=True,
    memory_weight=0.5,
    top_k=0.10,
    loss="hinge",
    loss_of="each",
    margin=10.0,
    mask_weight=1.0,
    cell_weight=1.0,
    reference_draws=5000,
    pseudo_defects=("cutmix", "patch", "scar", "blotch", "stroke"),
    real_share=0.5,
    moved_each=8,
    pseudo_each=2,
    known_masks=True,
    transplanted=0.5,
    pseudo_scored="beside_masks",
    epochs=8,
    batch=16,
    least_steps=25,
    zoom_from=3,
    learning_rate=1e-3,
    schedule="cosine",
    decay_every=10,
    decay=0.1,
    clip_norm=1.0,
    hold_out=0.15,
)

PROFILES: Final = {profile.name: profile for profile in (PAPER, LINE)}
PROFILE_JSON: Final = TypeAdapter(Profile)


def stages_up_to(stages: tuple[Stage, ...], deepest: Stage) -> tuple[Stage, ...]:
    """`stages` cut at `deepest`, which is always among them."""
    return (*(stage for stage in stages if stage < deepest), deepest)
