"""AUROC as the papers print it: table 1 of ATAC-Net, and tables 1 and 2 of its supplement.

MVTec's classes stand by their names alone: the folder of `bottle` may be `mvtec_bottle` too.
"""

from collections.abc import Sequence

from benchmarks.tables.rows import cited_as

# Table 1; its column Cut-Mix (ten) is the supplement's weighted cross-entropy, figure for figure.
_ROWS = ("devnet", "dra", "weighted_ce", "paper")
_TABLE_1 = {
    10: {
        "carpet": (0.867, 0.940, 0.803, 0.924),
        "grid": (0.967, 0.987, 0.931, 0.988),
        "leather": (0.999, 1.000, 0.984, 1.000),
        "tile": (0.987, 0.994, 0.935, 1.000),
        "wood": (0.999, 0.998, 0.988, 0.996),
        "bottle": (0.993, 1.000, 0.991, 1.000),
        "capsule": (0.865, 0.935, 0.914, 0.934),
        "pill": (0.866, 0.904, 0.852, 0.921),
        "transistor": (0.924, 0.915, 0.903, 0.969),
        "zipper": (0.990, 1.000, 0.989, 1.000),
        "cable": (0.892, 0.909, 0.864, 0.983),
        "hazelnut": (1.000, 1.000, 1.000, 1.000),
        "metal_nut": (0.991, 0.997, 0.952, 1.000),
        "screw": (0.970, 0.977, 0.966, 0.997),
        "toothbrush": (0.860, 0.826, 0.901, 0.879),
        "brain_mri": (0.958, 0.970, 0.899, 0.979),
        "head_ct": (0.982, 0.972, 0.913, 0.985),
    },
    1: {
        "carpet": (0.746, 0.859, 0.734, 0.849),
        "grid": (0.891, 0.972, 0.935, 0.918),
        "leather": (0.873, 0.989, 0.957, 0.994),
        "tile": (0.752, 0.965, 0.942, 0.980),
        "wood": (0.900, 0.985, 0.893, 0.987),
        "bottle": (0.976, 1.000, 0.984, 1.000),
        "capsule": (0.564, 0.631, 0.582, 0.735),
        "pill": (0.769, 0.832, 0.649, 0.821),
        "transistor": (0.722, 0.668, 0.715, 0.787),
        "zipper": (0.922, 0.984, 0.909, 0.988),
        "cable": (0.783, 0.876, 0.856, 0.904),
        "hazelnut": (0.979, 0.977, 0.973, 0.993),
        "metal_nut": (0.876, 0.948, 0.853, 0.963),
        "screw": (0.399, 0.903, 0.610, 0.734),
        "toothbrush": (0.753, 0.650, 0.594, 0.864),
        "brain_mri": (0.694, 0.744, 0.631, 0.833),
        "head_ct": (0.742, 0.796, 0.570, 0.864),
    },
}
# The supplement's table 1, steps that table 1 does not have.
_STEPS = ("cutmix_ce", "deviation")
_STEPS_TEN = {
    "carpet": (0.764, 0.852),
    "grid": (0.729, 0.947),
    "leather": (0.941, 0.993),
    "tile": (0.902, 0.987),
    "wood": (0.944, 0.985),
    "bottle": (0.985, 0.994),
    "capsule": (0.777, 0.911),
    "pill": (0.824, 0.866),
    "transistor": (0.815, 0.923),
    "zipper": (0.927, 0.990),
    "cable": (0.870, 0.892),
    "hazelnut": (0.984, 1.000),
    "metal_nut": (0.763, 0.989),
    "screw": (0.855, 0.970),
    "toothbrush": (0.863, 0.861),
}
# The supplement's table 2: one type of defect is known, the others are tested.
_UNSEEN_ROWS = ("devnet", "dra", "paper")
_UNSEEN = {
    10: {
        ("tile", "crack"): (0.947, 0.986, 0.973),
        ("tile", "glue_strip"): (0.879, 0.942, 0.953),
        ("tile", "gray_stroke"): (0.884, 0.947, 0.943),
        ("tile", "oil"): (0.863, 0.933, 0.941),
        ("tile", "rough"): (0.932, 0.959, 0.984),
        ("metal_nut", "bent"): (0.904, 0.990, 0.993),
        ("metal_nut", "color"): (0.978, 0.967, 0.982),
        ("metal_nut", "flip"): (0.987, 0.913, 0.991),
        ("metal_nut", "scratch"): (0.991, 0.911, 0.982),
    },
    1: {
        ("tile", "crack"): (0.926, 0.975, 0.969),
        ("tile", "glue_strip"): (0.763, 0.872, 0.904),
        ("tile", "gray_stroke"): (0.621, 0.905, 0.913),
        ("tile", "oil"): (0.794, 0.891, 0.909),
        ("tile", "rough"): (0.752, 0.970, 0.968),
        ("metal_nut", "bent"): (0.797, 0.952, 0.954),
        ("metal_nut", "color"): (0.909, 0.946, 0.961),
        ("metal_nut", "flip"): (0.764, 0.921, 0.945),
        ("metal_nut", "scratch"): (0.952, 0.909, 0.964),
    },
}

GOALS = {("pill", 10): 0.960, ("magnetic_tile", 10): 0.980}
"""Set for `line` where the paper's figure asks for less, or for nothing."""
_PERFECT = 0.003
"""A paper's 1.000 is reached from so far below."""


def cited(name: str, row: str, defects: int, *, kind: str | None = None) -> float | None:
    """What the papers have for this cell; `line` is measured against ATAC-Net's own figure.

    With `kind` that is the only known type of defect.
    """
    name, row = _class(name), cited_as(row)
    if kind is not None:
        return _beside(_UNSEEN_ROWS, _UNSEEN.get(defects, {}).get((name, kind)), row)
    figure = _beside(_ROWS, _TABLE_1.get(defects, {}).get(name), row)
    if figure is None and defects == 10:
        return _beside(_STEPS, _STEPS_TEN.get(name), row)
    return figure


def goal(name: str, defects: int) -> float | None:
    """What `line` is to reach; None where nothing says."""
    figure = cited(name, "line", defects)
    if (_class(name), defects) in GOALS:
        return GOALS[_class(name), defects]
    return figure - _PERFECT if figure == 1 else figure


def _class(name: str) -> str:
    return name.removeprefix("mvtec_")


def _beside(rows: Sequence[str], figures: Sequence[float] | None, row: str) -> float | None:
    return figures[rows.index(row)] if figures is not None and row in rows else None
