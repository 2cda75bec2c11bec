"""AUROC as the papers print it: table 1 of ATAC-Net, and its supplement's table 1 (ablation)."""

from benchmarks.tables.rows import cited_as

TEN_AND_ONE = (10, 1)

# set → row → (ten known defects, one); None where the papers have no such cell.
CITED: dict[str, dict[str, tuple[float | None, float | None]]] = {
    "mvtec_bottle": {
        "paper": (1.000, 1.000),
        "devnet": (0.993, 0.976),
        "dra": (1.000, 1.000),
        "cutmix_ce": (0.985, None),
        "weighted_ce": (0.991, 0.984),
        "deviation": (0.994, None),
    },
    "mvtec_pill": {
        "paper": (0.921, 0.821),
        "devnet": (0.866, 0.769),
        "dra": (0.904, 0.832),
        "cutmix_ce": (0.824, None),
        "weighted_ce": (0.852, 0.649),
        "deviation": (0.866, None),
    },
    "brain_mri": {
        "paper": (0.979, 0.833),
        "devnet": (0.958, 0.694),
        "dra": (0.970, 0.744),
        "weighted_ce": (0.899, 0.631),
    },
    "head_ct": {
        "paper": (0.985, 0.864),
        "devnet": (0.982, 0.742),
        "dra": (0.972, 0.796),
        "weighted_ce": (0.913, 0.570),
    },
}


def cited(name: str, row: str, defects: int) -> float | None:
    """What the paper has for this cell; `line` is measured against ATAC-Net's own figure."""
    figures = CITED.get(name, {}).get(cited_as(row))
    return figures[TEN_AND_ONE.index(defects)] if figures and defects in TEN_AND_ONE else None


GOALS = {("mvtec_pill", 10): 0.960, ("magnetic_tile", 10): 0.980}
"""Set for `line` where the paper's figure asks for less, or for nothing."""
_PERFECT = 0.003
"""A paper's 1.000 is reached from so far below."""


def goal(name: str, defects: int) -> float | None:
    """What `line` is to reach; None where nothing says."""
    figure = cited(name, "line", defects)
    if (name, defects) in GOALS:
        return GOALS[name, defects]
    return figure - _PERFECT if figure == 1 else figure
