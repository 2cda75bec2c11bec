"""The rows of the tables: each has settings, and a way of learning.

`ROWS` are tested. `OPTIONS` are `line` with one of its options taken out or exchanged; they are
validated, against `line` on the same folds, and never see a test image.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.baselines import devnet, dra, memory_bank
from benchmarks.baselines.ablations import (
    CUTMIX_CE,
    DEVIATION_LOSS,
    GRAD_CAM,
    ONE_PASS,
    WEIGHTED_CE,
)
from engine.errors import ConfigurationError
from train.backbones.resnet import ResNet
from train.datasets import Images, Source, Split, TrainingImages
from train.recipes import Run, Trained, line, nearest, paper
from train.recipes.line import Line
from train.recipes.nearest import Nearest
from train.recipes.paper import Paper
from train.weights import Weights

Settings = Line | Nearest | Paper
LINE, PAPER = Line(), Paper()


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the tables: `train` trains what `settings` say, or only remembers."""

    title: str
    settings: Settings
    train: Callable[[Any, TrainingImages, Run], Trained] = line.train
    learns: bool = True


_PAPERS = {
    "paper": Row(title="ATAC-Net `paper`", settings=PAPER, train=paper.train),
    "devnet": Row(title="DevNet", settings=devnet.SETTINGS, train=devnet.DEVNET.train),
    "dra": Row(title="DRA (ResNet-18)", settings=dra.SETTINGS, train=dra.DRA.train),
    "cutmix_ce": Row(title="CutMix + CE", settings=ONE_PASS, train=CUTMIX_CE.train),
    "weighted_ce": Row(title="weighted CE 20 / 0.5", settings=ONE_PASS, train=WEIGHTED_CE.train),
    "deviation": Row(
        title="deviation loss, no zoom", settings=ONE_PASS, train=DEVIATION_LOSS.train
    ),
    "grad_cam": Row(title="Grad-CAM zoom", settings=PAPER, train=GRAD_CAM.train),
}
_FROZEN = "_frozen"


def _frozen(row: Row) -> Row:
    """`row` on a backbone that stays as it was pretrained: minutes on two cores, not hours.

    What is learnt then begins near zero (such a head would not come down in time from He's
    initialisation), and synthetic defects are shown again, as `line` does both.
    """
    settings = replace(
        row.settings,
        freeze=True,
        initialisation="fan_in",
        synthetic_each=LINE.synthetic.each,
    )
    return replace(row, title=f"{row.title}, backbone frozen", settings=settings)


FROZEN = {f"{name}{_FROZEN}": _frozen(row) for name, row in _PAPERS.items()}
"""Run only when they are named: they stand in where the whole backbone cannot be trained."""

ROWS = {
    "line": Row(title="ATAC-Net `line`", settings=LINE),
    "line_labels": Row(
        title="`line`, labels only: no masks of known defects",
        settings=replace(LINE, known=replace(LINE.known, masks=False)),
    ),
    "nearest": Row(
        title="`nearest`: memory banks, and a closer look",
        settings=Nearest(),
        train=nearest.train,
    ),
    "memory": Row(
        title="memory bank of good features",
        settings=replace(LINE, memory_bank=None),
        train=memory_bank.train,
        learns=False,
    ),
    **FROZEN,
    **_PAPERS,
}

_OF_PATCHES = ("deviation", "grad_cam", "paper")
VERSIONS = (*(f"{name}{_FROZEN}" for name in _OF_PATCHES), *_OF_PATCHES, "line", "memory")
"""Rows that the figures can show: DRA's and the classifiers' scores are not of patches."""


def _line(title: str, **changes: Any) -> Row:
    return Row(title=title, settings=replace(LINE, **changes))


_BANK = LINE.memory_bank
assert _BANK is not None
OPTIONS = {
    "line-without-zoom": _line(
        "no pass 2", crop=replace(LINE.crop, min_side=LINE.view.side), zoom_from=LINE.epochs
    ),
    "line-without-gate": _line(
        "pass 2 whatever attention is worth", crop=replace(LINE.crop, gate=0.0)
    ),
    "line-zoom-from-view": _line(
        "pass 2 from the view, not the frame", view=replace(LINE.view, crop_from="view")
    ),
    "line-layer2-only": _line("layer2 only", backbone=ResNet(stages=("layer2",))),
    "line-layer3-only": _line("layer3 only", backbone=ResNet(stages=("layer3",))),
    "line-one-head": _line("one head instead of four", head=replace(LINE.head, heads=1)),
    "line-without-memory": _line("no memory bank of good features", memory_bank=None),
    "line-whole-memory": _line(
        "a σ of the memory bank counts as a deviation", memory_bank=replace(_BANK, weight=1.0)
    ),
    "line-without-pseudo": _line(
        "known defects only, no synthetic ones", known=replace(LINE.known, share=1.0)
    ),
    "line-cutmix-only": _line(
        "CutMix the only synthetic kind", synthetic=replace(LINE.synthetic, kinds=("cutmix",))
    ),
    "line-without-moving": _line(
        "known defects as they are, not moved", known=replace(LINE.known, versions=0)
    ),
    "line-without-known-masks": _line(
        "known defects by their labels only", known=replace(LINE.known, masks=False)
    ),
    "line-without-cell-loss": _line("no loss of patches", patch_weight=0.0),
    "line-without-transplants": _line(
        "known defects not set onto good parts",
        synthetic=replace(LINE.synthetic, transplanted=0.0),
    ),
}
"""Their names are those of the ledgers."""


def changed_by(option: str) -> set[str]:
    """The dotted names of the settings in which a row of `OPTIONS` differs from `line`."""
    line, row = (flat(asdict(each.settings)) for each in (ROWS["line"], row_of(option)))
    missing = object()
    return {name for name in line | row if line.get(name, missing) != row.get(name, missing)}


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= (
            flat(value, f"{prefix}{name}.")
            if isinstance(value, Mapping)
            else {prefix + name: value}
        )
    return found


def cited_as(name: str) -> str:
    """The row whose figures in the papers are also those of row `name`."""
    return "paper" if name == "line" else name.removesuffix(_FROZEN)


def row_of(name: str) -> Row:
    return (ROWS | OPTIONS)[name]


def weights_of(row: Row, offered: Sequence[Weights]) -> Weights | None:
    """Those of `offered` that are of the row's backbone, or None where none are offered.

    Raises `ConfigurationError` where only others are.
    """
    wanted = row.settings.backbone.architecture
    fitting = [weights for weights in offered if _architecture(weights) == wanted]
    if offered and not fitting:
        raise ConfigurationError(
            "--weights",
            ", ".join(weights.source for weights in offered),
            f"{row.title!r} has a backbone of {wanted}: give such weights as well, "
            "or leave the row out with --rows",
        )
    return fitting[0] if fitting else None


def _architecture(weights: Weights) -> str:
    return "resnet50" if "layer1.0.conv3.weight" in weights.tensors else "resnet18"


def settled_settings(row: Row, weights: Weights | None) -> Settings:
    """The row's settings with what the weights decide: form, and how deep the backbone can be."""
    settings = row.settings.settled(weights)
    shallow = weights and not any(name.startswith("layer4.") for name in weights.tensors)
    if shallow and "layer4" in settings.backbone.stages:
        stages = tuple(stage for stage in settings.backbone.stages if stage < "layer3")
        backbone = replace(settings.backbone, stages=(*stages, "layer3"))
        settings = replace(settings, backbone=backbone)
    return settings


def learnt(
    row: Row,
    source: Source,
    split: Split,
    settings: Settings,
    *,
    weights: Weights | None,
    seed: int,
    run_folder: Path,
    on_epoch: Callable[[str], None],
) -> Trained:
    """Train the row, continuing where an interrupted training left `run_folder`."""
    run = Run(
        settings=settings,
        weights=weights,
        seed=seed,
        folder=run_folder,
        resume=True,
        on_epoch=lambda e: on_epoch(
            f"epoch {e.number}/{e.of}: loss {e.loss:.3f}, {e.seconds:.0f} s"
        ),
    )
    return row.train(settings, TrainingImages(Images(source), split), run)
