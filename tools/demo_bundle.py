"""Train the model of `agent demo` on generated parts: `make demo-bundle` calls this.

    python tools/demo_bundle.py PARTS OUT

ResNet-18 up to layer2, from scratch, on 128-pixel views: small enough for a repository, quick
enough for any machine. The parts go to PARTS, in MVTec's layout: `PARTS/training` for this script,
`PARTS/calibration` for `agent calibrate`. The demo's own belt is neither of them.
"""

import sys
from dataclasses import replace
from pathlib import Path

from agent.synthetic.flange import write_parts
from engine.bundle import write_manifest
from engine.methods.atac import atac_of
from train.backbones.resnet import ResNet
from train.checkpoint import Epoch
from train.datasets import find_source
from train.network import ConvolutionHead
from train.recipes.line import KnownDefects, Line, SyntheticDefects
from train.run import train_bundle

LINE = Line()
SETTINGS = replace(
    LINE,
    view=replace(LINE.view, side=128, reducing_gap=3.0),  # as it was when it was trained
    crop=replace(LINE.crop, min_side=80, gate=0.3),
    backbone=ResNet(architecture="resnet18", stages=("layer2",)),
    freeze=False,
    memory_bank=None,
    local_mean=False,
    head=ConvolutionHead(kernel=1, channels=64, heads=1),
    top_k=0.02,  # a scratch covers few of the 256 patches
    # Starting from nothing, it learns most from where the defects are.
    attention_weight=20.0,
    patch_weight=0.0,
    known=KnownDefects(share=0.8, versions=8, masks=True),
    synthetic=SyntheticDefects(each=2, transplanted=0.0),
    epochs=14,
    least_steps=60,
    zoom_from=6,
)


def main(parts: Path, out: Path) -> None:
    write_parts(parts / "training", seed=1, good=240, defective=480, test_good=480)
    write_parts(parts / "calibration", seed=2, good=600, defective=120, test_good=120)
    bundle = train_bundle(
        find_source(parts / "training", None, None),
        out,
        SETTINGS,
        weights=None,
        defects=240,
        on_epoch=tell,
    ).written.bundle
    # Training zooms wherever there is a little attention; on the line only attention above half of
    # its maximum is worth a second pass, so that a good part seldom has one.
    method = atac_of(bundle)
    method = replace(method, crop=replace(method.crop, gate=0.5))
    bundle = write_manifest(out, replace(bundle.manifest, method=method))
    print(f"{bundle.path}: {bundle.id}")


def tell(epoch: Epoch) -> None:
    print(
        f"epoch {epoch.number}/{epoch.of}: loss {epoch.loss:.3f}, "
        f"AUROC {epoch.separation:.3f}, {epoch.seconds:.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
