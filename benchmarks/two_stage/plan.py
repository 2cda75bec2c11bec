"""Which trainings there are, and how the settings that the paper leaves open are chosen.

The choice is made on good images held out and the ten known defects of draw 0; no image of the
test is looked at. Each of `OPTIONS` changes one setting of the recipe, in a shorter training. It is
chosen where the mean AUROC over `MASKED` is higher than the recipe's by more than `LEAST`: of
pixels for the attention network, of images for ADGAN.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, Final

import numpy as np

from benchmarks.two_stage.dcgan import VARIANTS, DcganJob
from benchmarks.two_stage.jobs import Job, Result
from train.backbones.resnet import ResNet
from train.evaluate import auroc
from train.recipes.two_stage import TwoStage

MASKED: Final = ("mvtec_pill", "mvtec_bottle")
SETS: Final = ("mvtec_bottle", "mvtec_pill", "magnetic_tile", "brain_mri", "head_ct")
DRAWS: Final = (0, 1, 2)
OF_TABLE_1: Final = "mvtec_pill"
LEAST: Final = 0.005
SELECT_EPOCHS: Final = 20

BASE: Final = TwoStage()
OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "rectangle": {"augmentation.region": "rectangle"},
    "whole-50": {"augmentation.whole": 0.5},
    "larger-regions": {"augmentation.area": (0.01, 0.3)},
    "attention-10": {"attention": 10.0},
    "rate-3e-4": {"first_rate": 3e-4},
    "layer3-only": {"backbone": ResNet(architecture="resnet18", stages=("layer3",))},
    "encoder-trained": {"freeze": False},
    "half-as-long": {},
}
ADGAN_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "adgan-rate-1e-3": {"adgan_rate": 1e-3},
    "adgan-generated-1": {"adgan_generated": 1.0},
    "adgan-anomalies-0.1": {"adgan_anomalies": 0.1},
    "adgan-without-anomalies": {"adgan_anomalies": 0.0},
}


def with_settings(settings: TwoStage, changes: Mapping[str, Any]) -> TwoStage:
    """`settings` with changes by dotted names."""
    for name, value in changes.items():
        first, _, rest = name.partition(".")
        if rest:
            value = replace(getattr(settings, first), **{rest: value})  # noqa: PLW2901
        settings = replace(settings, **{first: value})
    return settings


def selection(base: TwoStage) -> list[Job]:
    """The trainings of the choice; the recipe's own, `base`, is followed by those of ADGAN."""
    short = base.lasting(min(SELECT_EPOCHS, base.epochs))
    attention = replace(short, epochs=short.adgan_from + 1)
    named = {"base": short} | {
        name: with_settings(attention, changes) for name, changes in OPTIONS.items()
    }
    half = short.adgan_from // 2
    named["half-as-long"] = replace(short, adgan_from=max(1, half), epochs=max(2, half + 1))
    return [
        Job(stage="select", set=each, draw=0, variant=variant, settings=settings)
        for variant, settings in named.items()
        for each in MASKED
    ]


def chosen(base: TwoStage, results: Sequence[Result]) -> tuple[TwoStage, dict[str, float]]:
    """The settings that the results say are better, and by how much each option is."""
    leads: dict[str, float] = {}
    for name, changes in (OPTIONS | ADGAN_OPTIONS).items():
        value = _pixels if name in OPTIONS else _images
        gains = [
            value(one) - value(other)
            for one in results
            for other in results
            if one.job.variant == name
            and other.job.variant == "base"
            and one.job.set == other.job.set
        ]
        if len(gains) < len(MASKED):
            continue
        leads[name] = fmean(gains)
        if leads[name] > LEAST:
            base = with_settings(base, changes)
            if name == "half-as-long":
                half = base.adgan_from // 2
                base = replace(base, adgan_from=half, epochs=base.epochs - half)
    return base, leads


def _pixels(result: Result) -> float:
    ranking = result.groups["validation"].pixels
    assert ranking is not None
    return ranking.auroc


def _images(result: Result) -> float:
    group = result.groups["validation"]
    return auroc(np.array(group.scores["adgan"]), np.array(group.defective))


def tables(settings: TwoStage) -> list[Job | DcganJob]:
    """The trainings of the tables, the most telling first."""
    full = [
        Job(stage="table", set=name, draw=draw, variant="full", settings=settings)
        for draw in DRAWS
        for name in SETS
    ]
    only = replace(settings, epochs=settings.adgan_from + 1)  # maps need no ADGAN
    ablated = {
        "without_anomaly_adversarial": replace(only, anomaly_adversarial=0.0),
        "without_attention": replace(only, attention=0.0),
    }
    losses = [
        Job(stage="table", set=name, draw=draw, variant=variant, settings=changed)
        for draw in DRAWS
        for name in ("mvtec_bottle", "mvtec_pill")
        for variant, changed in ablated.items()
    ]
    small = [
        DcganJob(set=OF_TABLE_1, draw=draw, variant=variant)
        for draw in DRAWS
        for variant in VARIANTS
    ]
    ours, theirs = len(full) // len(DRAWS), len(losses) // len(DRAWS)
    return [
        *full[:ours],
        *losses[:theirs],
        *full[ours:],
        *losses[theirs:],
        *small,
    ]
