"""Train the model of `agent demo` on generated parts: `make demo-bundle` calls this.

    python tools/demo_bundle.py PARTS OUT

Half of ResNet-18 up to layer2, from scratch, on views of 304 pixels, in which a scratch of one
pixel of the frame is still seen: small enough for a repository, quick enough for any machine. The
parts go to PARTS, in MVTec's layout: `PARTS/training` for this script, `PARTS/calibration` for
`agent calibrate`. The demo's own belt is neither of them.
`python -m benchmarks.demo_parts` says how many generated parts the bundle judges rightly.
"""

import sys
from dataclasses import replace
from pathlib import Path

from agent.synthetic.flange import DEFECTS, write_parts
from train.backbones.resnet import ResNet
from train.checkpoint import Epoch
from train.datasets import find_source
from train.network import ConvolutionHead
from train.recipes.line import KnownDefects, Line, SyntheticDefects
from train.run import train_bundle

LINE = Line()
SETTINGS = replace(
    LINE,
    view=replace(LINE.view, side=304),
    # From a closer box a missing hole is plain metal, and dust is large.
    crop=replace(LINE.crop, min_side=118, gate=0.2),
    backbone=ResNet(architecture="resnet18_half", stages=("layer2",)),
    freeze=False,
    memory_bank=None,
    local_mean=False,
    head=ConvolutionHead(kernel=1, channels=64, heads=1),
    top_k=0.0021,  # a scratch covers few of the 1444 patches: three count
    # Starting from nothing, it learns most from where the defects are.
    attention_weight=20.0,
    # There are as many known defects as one likes, so none is moved or made up.
    known=KnownDefects(share=1.0, versions=0, masks=True),
    synthetic=SyntheticDefects(each=2, transplanted=0.0),
    # A quarter of each view takes a quarter of the time, and small batches learn more in it.
    window=152,
    batch=8,
    epochs=90,
    least_steps=1,
    zoom_from=0,
)
KNOWN = 1160
KINDS = ("scratch", "scratch", "scratch", "missing_hole", *DEFECTS)
"""Thin scratches are the hardest to see, so four tenths of what is learnt are scratches."""
MOST = 4
"""So many defects on one picture: as many pictures teach more of the places they may have."""
SPECKS = 16
"""Four times the dust of the belt: else a bright speck beside a hole is too rare to be learnt."""


def main(parts: Path, out: Path) -> None:
    write_parts(
        parts / "training",
        seed=1,
        good=800,
        defective=1200,
        test_good=60,
        kinds=KINDS,
        specks=SPECKS,
        most=MOST,
    )
    write_parts(parts / "calibration", seed=2, good=3000, defective=120, test_good=0)
    bundle = train_bundle(
        find_source(parts / "training", None, None),
        out,
        SETTINGS,
        weights=None,
        defects=KNOWN,
        on_epoch=tell,
    ).written.bundle
    print(f"{bundle.path}: {bundle.id}")


def tell(epoch: Epoch) -> None:
    print(
        f"epoch {epoch.number}/{epoch.of}: loss {epoch.loss:.3f}, "
        f"AUROC {epoch.separation:.3f}, {epoch.seconds:.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
