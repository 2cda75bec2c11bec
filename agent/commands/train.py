"""`agent train`: images in, bundle out."""

import importlib.util
import json
import math
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from engine.errors import AtacError, ConfigurationError
from engine.extras import install

if TYPE_CHECKING:
    from engine.bundle import Bundle
    from train.backbone import PretrainedWeights
    from train.datasets import Source, Split
    from train.fit import Epoch
    from train.profile import Profile


def train(
    *,
    out: Annotated[Path, typer.Option(help="Folder for the bundle; must be new.")],
    data: Annotated[
        Path | None, typer.Option(help="Images: MVTec's layout, or good/ and defective/.")
    ] = None,
    good: Annotated[Path | None, typer.Option(help="Folder of good parts, without --data.")] = None,
    defective: Annotated[
        Path | None, typer.Option(help="Folder of defective parts, beside --good.")
    ] = None,
    profile: Annotated[
        Literal["line", "paper"], typer.Option(help="What works best, or the paper's letter.")
    ] = "line",
    backbone: Annotated[
        Literal["resnet18", "resnet50"] | None, typer.Option(help="Default: the profile's.")
    ] = None,
    stage: Annotated[
        Literal["layer2", "layer3", "layer4"] | None,
        typer.Option(help="Deepest stage of the backbone; default: the profile's."),
    ] = None,
    backbone_weights: Annotated[
        str,
        typer.Option(
            help="ImageNet weights, .pth or .safetensors, or 'none' to start from nothing."
        ),
    ] = "",
    backbone_form: Annotated[
        Literal["v1", "v1.5"] | None,
        typer.Option(
            help="Where the weights' strides sit: in the 1×1 (v1) or 3×3 convolution (v1.5). "
            "Default: what the file says, else v1.5, torchvision's."
        ),
    ] = None,
    defects: Annotated[
        int | None,
        typer.Option(min=0, help="Known defects to learn from; default 10, at most half."),
    ] = None,
    hold_out: Annotated[
        float | None,
        typer.Option(min=0.0, max=0.9, help="Share of good images to keep unseen."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Default: the profile's.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same machine: same weights.")] = 0,
    resume: Annotated[bool, typer.Option(help="Go on with an interrupted training.")] = False,
    accept_flips: Annotated[
        bool, typer.Option(help="Accept an ONNX export that changes verdicts.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Learn what good parts look like, and what is wrong with a few defective ones.

    Example: agent train --data mvtec_bottle --out bottle --backbone-weights resnet50-0676ba61.pth

    Writes a bundle with the fp32 network, and into it training.html: curves, scores, pictures, and
    what to collect next. Then: agent export for fp16 and int8, agent calibrate for the threshold.
    Ctrl-C loses one epoch at most: --resume goes on.
    """
    require_training_packages("agent train")
    from train.datasets import find_source
    from train.fit import train_bundle

    source = find_source(data, good, defective)
    settings = _settings(profile, backbone, stage, hold_out, epochs)
    weights = _weights(backbone_weights, backbone_form, settings)
    history: list[Epoch] = []
    with ExitStack() as stack:
        shown = _progress(stack, settings.epochs)

        def on_epoch(epoch: "Epoch") -> None:
            history.append(epoch)
            shown(epoch)

        try:
            bundle = train_bundle(
                source,
                out,
                settings,
                weights=weights,
                defects=defects,
                seed=seed,
                resume=resume,
                accept_flips=accept_flips,
                on_split=_say_split,
                on_epoch=on_epoch,
            )
        except KeyboardInterrupt:
            sys.stderr.write("\nTo go on, repeat the command with --resume.\n")
            raise

    record = bundle.manifest.training
    report = _report(bundle, source, history)
    if as_json:
        answer = {
            "bundle": str(bundle.path),
            "id": bundle.id,
            "report": None if report is None else str(report),
            "epochs": [
                asdict(epoch)
                | {"separation": None if math.isnan(epoch.separation) else epoch.separation}
                for epoch in history
            ],
            "training": asdict(record),
        }
        typer.echo(json.dumps(answer, indent=2))
        return
    typer.echo(
        f"Trained on {record.good} good and {record.defective} defective images in "
        f"{record.seconds:.0f} s; last loss {record.final_loss:.3g}."
    )
    pages = "" if report is None else f" and {report}"
    typer.echo(f"Written: {bundle.path} (id {bundle.id[:12]}){pages}")
    typer.echo(f"Next: agent calibrate --bundle {bundle.path} --good DIR")


def _report(bundle: "Bundle", source: "Source", history: "list[Epoch]") -> Path | None:
    """Write the page; the bundle stands without it, so a failure is told and None returned."""
    from train.report import REPORT, examine, write_report

    path = bundle.path / REPORT
    try:
        write_report(path, examine(bundle, source, history), source)
    except AtacError as error:
        sys.stderr.write(f"WARNING: no {REPORT}, but the bundle is whole: {error}\n")
        return None
    return path


def require_training_packages(command: str) -> None:
    """Raise `ConfigurationError` when the packages of the extra `train` are not installed."""
    missing = [
        name
        for name in ("torch", "onnx", "onnxscript", "safetensors")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise ConfigurationError(command, ", ".join(missing), f"not installed; {install('train')}")


def _settings(
    name: Literal["line", "paper"],
    backbone: Literal["resnet18", "resnet50"] | None,
    stage: Literal["layer2", "layer3", "layer4"] | None,
    hold_out: float | None,
    epochs: int | None,
) -> "Profile":
    from train.profile import PROFILES, stages_up_to

    profile = PROFILES[name]
    if backbone is not None:
        profile = replace(profile, architecture=backbone)
    if stage is not None:
        profile = replace(profile, stages=stages_up_to(profile.stages, stage))
    if hold_out is not None:
        profile = replace(profile, hold_out=hold_out)
    if epochs is not None:
        # The learning rate falls, and pass 2 joins, at the same shares of the training.
        share = epochs / profile.epochs
        profile = replace(
            profile,
            epochs=epochs,
            decay_every=max(1, round(profile.decay_every * share)),
            zoom_from=round(profile.zoom_from * share),
        )
    return profile


def _weights(
    given: str, form: Literal["v1", "v1.5"] | None, profile: "Profile"
) -> "PretrainedWeights | None":
    from train.backbone import TORCHVISION_FILES, read_weights

    if given == "none":
        return None
    if not given:
        raise ConfigurationError(
            "--backbone-weights",
            None,
            f"give an ImageNet checkpoint of {profile.architecture}, for example "
            f"{TORCHVISION_FILES[profile.architecture]}, or 'none' to start from nothing "
            "(that takes more images and epochs, and finds less)",
        )
    return read_weights(Path(given), form=form)


def _say_split(split: "Split") -> None:
    for dropped in split.dropped:
        sys.stderr.write(f"{dropped.path} shows the same as {dropped.same_as}: left out\n")
    if sys.stderr.isatty():
        defective = sum(item.defective for item in split.test)
        masked = sum(item.mask is not None for item in split.train_defective)
        sys.stderr.write(
            f"{len(split.train_good)} good and {len(split.train_defective)} defective images "
            f"({masked} of them with a mask) to train on, "
            f"{len(split.held_out_good)} good held out, "
            f"{len(split.test) - defective} good and {defective} defective to test.\n"
        )


def _progress(stack: ExitStack, epochs: int) -> "Callable[[Epoch], None]":
    """What to do after each epoch: a bar and a line on a terminal, nothing in a pipe."""
    if not sys.stderr.isatty():
        return lambda _: None
    from rich.console import Console
    from rich.progress import Progress

    bar = stack.enter_context(Progress(console=Console(stderr=True)))
    task = bar.add_task("training", total=epochs)

    def show(epoch: "Epoch") -> None:
        told = (
            ""
            if math.isnan(epoch.separation)
            else f", held-out good against known defects: AUROC {epoch.separation:.3f}"
        )
        bar.console.print(
            f"epoch {epoch.number}/{epoch.of}: loss {epoch.loss:.3f}{told}", highlight=False
        )
        bar.update(task, completed=epoch.number)

    return show
