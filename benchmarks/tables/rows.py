"""The rows of the tables: each a profile and a way of learning it.

`ROWS` are tested. `OPTIONS` are `line` with one of its options taken out or exchanged; they are
validated, against `line` on the same folds, and never see a test image.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from engine.errors import ConfigurationError
from train.backbone import PretrainedWeights
from train.datasets import Source, Split
from train.fit import ATAC_NET, Method, Trained, fit, settled
from train.profile import LINE, PAPER, Profile, stages_up_to
from train.rivals.ablations import CUTMIX_CE, DEVIATION_LOSS, GRAD_CAM, ONE_PASS, WEIGHTED_CE
from train.rivals.devnet import DEVNET
from train.rivals.devnet import PROFILE as DEVNET_PROFILE
from train.rivals.dra import DRA
from train.rivals.dra import PROFILE as DRA_PROFILE
from train.rivals.memory_bank import remembered


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the tables; `method` None is the memory, which learns nothing."""

    title: str
    profile: Profile
    method: Method | None = ATAC_NET


_PAPERS = {
    "paper": Row(title="ATAC-Net `paper`", profile=PAPER),
    "devnet": Row(title="DevNet", profile=DEVNET_PROFILE, method=DEVNET),
    "dra": Row(title="DRA (ResNet-18)", profile=DRA_PROFILE, method=DRA),
    "cutmix_ce": Row(title="CutMix + CE", profile=ONE_PASS, method=CUTMIX_CE),
    "weighted_ce": Row(title="weighted CE 20 / 0.5", profile=ONE_PASS, method=WEIGHTED_CE),
    "deviation": Row(title="deviation loss, no zoom", profile=ONE_PASS, method=DEVIATION_LOSS),
    "grad_cam": Row(title="Grad-CAM zoom", profile=PAPER, method=GRAD_CAM),
}
_FROZEN = "_frozen"


def _frozen(row: Row) -> Row:
    """`row` on a trunk that stays as it was pretrained: minutes on two cores instead of hours.

    What is learnt then begins near zero (such a head would not come down from He's start in time),
    and what was painted once is shown again, as `line` does both.
    """
    profile = replace(row.profile, freeze=True, start=LINE.start, pseudo_each=LINE.pseudo_each)
    return replace(row, title=f"{row.title}, trunk frozen", profile=profile)


FROZEN = {f"{name}{_FROZEN}": _frozen(row) for name, row in _PAPERS.items()}
"""Run only when they are named: they stand in where the whole trunk cannot be trained."""

ROWS = {
    "line": Row(title="ATAC-Net `line`", profile=LINE),
    "line_labels": Row(
        title="`line`, labels only: no masks of known defects",
        profile=replace(LINE, known_masks=False),
    ),
    "memory": Row(
        title="memory of good features", profile=replace(LINE, prototypes=0), method=None
    ),
    **FROZEN,
    **_PAPERS,
}

_OF_CELLS = ("deviation", "grad_cam", "paper")
VERSIONS = (*(f"{name}{_FROZEN}" for name in _OF_CELLS), *_OF_CELLS, "line", "memory")
"""Rows that the figures can show: DRA's and the classifiers' scores are not of cells."""


def _line(title: str, **changes: Any) -> Row:
    return Row(title=title, profile=replace(LINE, **changes))


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
    "line-layer2-only": _line("layer2 only", stages=("layer2",)),
    "line-layer3-only": _line("layer3 only", stages=("layer3",)),
    "line-one-head": _line("one head instead of four", heads=1),
    "line-without-residual": _line("no second convolution in σ", refine="none"),
    "line-self-attention": _line(
        "self-attention in σ, and one head", refine="self_attention", heads=1
    ),
    "line-without-memory": _line("no memory of good features", prototypes=0),
    "line-without-unit-cells": _line("memory of cells as long as they are", unit_cells=False),
    "line-whole-memory": _line("a σ of the memory counts as a deviation", memory_weight=1.0),
    "line-without-pseudo": _line("known defects only, none painted", real_share=1.0),
    "line-cutmix-only": _line("CutMix the only painted kind", pseudo_defects=("cutmix",)),
    "line-pseudo-scored": _line(
        "painted defects teach the score without masks too", pseudo_scored="always"
    ),
    "line-without-moving": _line("known defects as they are, not moved", moved_each=0),
    "line-without-masks": _line(
        "attention the mean of F, not taught by masks", attention="mean", mask_weight=0.0
    ),
    "line-without-known-masks": _line("known defects by their labels only", known_masks=False),
    "line-without-cell-loss": _line("no loss of cells", cell_weight=0.0),
    "line-without-transplants": _line("known defects not set onto good parts", transplanted=0.0),
    "line-loss-of-mean": _line("loss of the mean of both passes", loss_of="mean"),
}


def changed_by(option: str) -> list[str]:
    """The settings in which a row of `OPTIONS` differs from `line`."""
    line, row = ROWS["line"].profile, row_of(option).profile
    return [
        one.name for one in fields(Profile) if getattr(row, one.name) != getattr(line, one.name)
    ]


def cited_as(name: str) -> str:
    """The row whose figures in the papers are also those of row `name`."""
    return "paper" if name == "line" else name.removesuffix(_FROZEN)


def row_of(name: str) -> Row:
    return (ROWS | OPTIONS)[name]


def weights_of(row: Row, offered: Sequence[PretrainedWeights]) -> PretrainedWeights | None:
    """Those of `offered` that are of the row's architecture, or None where none are offered.

    Raises `ConfigurationError` where only others are.
    """
    architecture = row.profile.architecture
    fitting = [weights for weights in offered if weights.architecture == architecture]
    if offered and not fitting:
        raise ConfigurationError(
            "--weights",
            ", ".join(weights.source for weights in offered),
            f"{row.title!r} has a trunk of {architecture}: give such weights as well, "
            "or leave the row out with --rows",
        )
    return fitting[0] if fitting else None


def settled_profile(row: Row, weights: PretrainedWeights | None) -> Profile:
    """The row's profile with what the weights decide: form, and how deep the trunk can be."""
    profile = settled(row.profile, weights)
    shallow = weights and not any(name.startswith("layer4.") for name in weights.tensors)
    if shallow and "layer4" in profile.stages:
        profile = replace(profile, stages=stages_up_to(profile.stages, "layer3"))
    return profile


def learnt(
    row: Row,
    source: Source,
    split: Split,
    profile: Profile,
    *,
    weights: PretrainedWeights | None,
    seed: int,
    run_folder: Path,
    on_epoch: Callable[[str], None],
) -> Trained:
    """Train the row, going on where an interrupted training left `run_folder`."""
    if row.method is None:
        return remembered(source, split, profile, weights=weights, seed=seed)
    return fit(
        source,
        split,
        profile,
        weights=weights,
        seed=seed,
        run_folder=run_folder,
        method=row.method,
        resume=True,
        on_epoch=lambda e: on_epoch(
            f"epoch {e.number}/{e.of}: loss {e.loss:.3f}, {e.seconds:.0f} s"
        ),
    )
