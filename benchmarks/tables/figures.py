"""One set in figures: scores, what the network sees, and where it looks closer; a page, and SVG.

The draw is the first, with the most known defects. Photographs are on the page only: the SVG files
beside it have none.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.manifold import TSNE
from torch import Tensor

from benchmarks.tables.rows import row_of, settled_settings
from benchmarks.tables.runs import Run, calibrated, trained_for
from benchmarks.tables.sets import DEFECTS, read_manifest, source_of
from engine.frame import Inspection
from engine.methods import open_method
from engine.pages.charts import bins, counts, histogram_svg
from engine.pages.rendering import colours, plain_page
from engine.picture import attended, data_uri, reduced
from engine.score import top_k_count
from train.datasets import Listed, Source, read_listed
from train.evaluate import auroc
from train.network import TorchBackend
from train.weights import Weights

_SIDE = 320
_MOST_KINDS = 6
_GOOD_SHOWN = 3
_PERPLEXITY = 30  # fewer where there are few images
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Seen:
    """An image, what was found in it, and the features `(C,)` behind its score, where τ has any."""

    item: Listed
    inspection: Inspection
    features: Floats | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Version:
    """A trained row, and what it makes of the test and of the defects it learnt from."""

    row: str
    backbone: str
    good: tuple[Seen, ...]
    defective: tuple[Seen, ...]
    learnt: tuple[Seen, ...]
    threshold: float | None

    @property
    def title(self) -> str:
        return row_of(self.row).title.replace("`", "")

    @property
    def auroc(self) -> float:
        tested = (*self.good, *self.defective)
        return auroc(np.array(scores(tested)), np.array([one.item.defective for one in tested]))

    @property
    def looks_somewhere(self) -> bool:
        """Whether its attention can tell one place from another."""
        return any(np.ptp(one.inspection.attention) > 0 for one in self.good)


def write_figures(
    out: Path,
    name: str,
    rows: Sequence[str],
    *,
    data: Path,
    weights: Weights | None,
    run_folder: Path,
) -> Path:
    """Train what `run_folder` lacks, write page and SVG files of set `name`; the page's path."""
    source = source_of(read_manifest(name), data / name)
    versions = [
        _version(Run(set=name, row=row, defects=max(DEFECTS), draw=0), source, weights, run_folder)
        for row in rows
    ]
    out.mkdir(parents=True, exist_ok=True)
    drawings = dict(_drawings(versions))
    for kind, (_, svg) in drawings.items():
        (out / f"{name}-{kind}.svg").write_text(standalone(svg), encoding="utf-8")
    pretrained = "nothing" if weights is None else weights.source
    backbones = "; ".join(f"{version.title}: {version.backbone}" for version in versions)
    body = [
        f"<h1>{escape(name)}, {max(DEFECTS)} known defects, draw 0</h1>",
        f'<p class="soft">Pretrained: {escape(pretrained)}. Backbones: {escape(backbones)}.</p>',
    ]
    for title, svg in drawings.values():
        body += (f"<h2>{escape(title)}</h2>", f'<div class="card">{svg}</div>')
    body += (*_whole_frames(versions), *_overlays(versions, source))
    path = out / f"{name}.html"
    path.write_bytes(plain_page(f"Figures of {name}", "\n".join(body)))
    return path


def scores(seen: Sequence[Seen]) -> list[float]:
    return [one.inspection.score for one in seen]


def overlap(good: Sequence[float], defective: Sequence[float], threshold: float) -> float:
    """The overlap coefficient of two histograms: 0 where no bin holds both, 1 where they agree."""
    edges = bins([*good, *defective], threshold, about=48)
    shares = (np.array(counts(values, edges)) / len(values) for values in (good, defective))
    return float(np.minimum(*shares).sum())


def behind_score(features: Tensor, score_map: npt.NDArray[np.float32], share: float) -> Floats:
    """The mean of `features` `(C, h, w)` over the patches that the score is the mean of (Eq 8)."""
    magnitudes = np.abs(score_map).ravel()
    top = np.argsort(-magnitudes, kind="stable")[: top_k_count(len(magnitudes), share)]
    return np.asarray(features.detach().cpu().flatten(1).numpy()[:, top].mean(axis=1), np.float64)


def embedded(features: Sequence[Floats]) -> Floats:
    """t-SNE (van der Maaten and Hinton 2008) of vectors: `(n, 2)`, within 0 … 1."""
    x = np.stack(features)
    x = (x - x.mean(axis=0)) / (x.std(axis=0).max() + 1e-12)
    perplexity = min(_PERPLEXITY, (len(x) - 1) / 3)
    found = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(x)
    low, high = found.min(axis=0), found.max(axis=0)
    return np.asarray((found - low) / np.maximum(high - low, 1e-12), dtype=np.float64)


def standalone(svg: str) -> str:
    """An `<svg>` element of a page as a file of its own, with the page's colours."""
    start, _, rest = svg.partition(">")
    look = "svg { background: var(--ground); } svg text { font: 14px sans-serif; }"
    return (
        f'{start} xmlns="http://www.w3.org/2000/svg">\n<style>{colours()}{look}</style>\n{rest}\n'
    )


def _version(run: Run, source: Source, weights: Weights | None, run_folder: Path) -> Version:
    row, split = row_of(run.row), run.split()
    settings = settled_settings(row, weights)
    trained = trained_for(run, source, weights, run_folder)
    read: list[Tensor] = []  # what τ read, pass by pass
    score = getattr(trained.network.head, "score", None)
    if score is not None:
        score.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0][0]))
    with TorchBackend(trained.network) as backend:
        inspector = open_method(trained.method, backend)

        def look(item: Listed) -> Seen:
            read.clear()
            found = inspector.inspect(read_listed(source, item))
            features = behind_score(read[0], found.score_map, settings.top_k) if read else None
            return Seen(item=item, inspection=found, features=features)

        tested = [look(item) for item in split.test]
        # The memory bank learns from no defect.
        known = [look(item) for item in split.train_defective] if row.learns else []
        held_out = scores([look(item) for item in split.held_out_good])
    return Version(
        row=run.row,
        backbone=settings.backbone.label,
        good=tuple(one for one in tested if not one.item.defective),
        defective=tuple(one for one in tested if one.item.defective),
        learnt=tuple(known),
        threshold=calibrated(held_out).value if held_out else None,
    )


def _drawings(versions: Sequence[Version]) -> Iterator[tuple[str, tuple[str, str]]]:
    """What each SVG file is called, its title and the drawing."""
    for version in versions:
        if version.threshold is not None:
            groups = [scores(s) for s in (version.good, version.defective, version.learnt)]
            good, defective, known = groups
            shared = overlap(good, defective, version.threshold)
            title = (
                f"Scores of {version.title}: AUROC {version.auroc:.3f}, "
                f"overlap of good and defective {shared:.2f}"
            )
            svg = histogram_svg(good, defective, version.threshold, learnt=known)
            yield f"scores-{version.row}", (title, svg)
    shown = [version for version in versions if version.good[0].features is not None]
    if shown:
        yield "features", ("The features behind each score, by t-SNE", scatter_svg(shown))


_PANEL, _GAP, _TOP, _MARGIN = 250, 20, 92, 10


def scatter_svg(versions: Sequence[Version]) -> str:
    """A panel beside the other for each version, a mark for each image."""
    width = max(3, len(versions)) * (_PANEL + _GAP) + _GAP
    parts = []
    for number, (mark, colour, words) in enumerate(_MARKS):
        at = _GAP + 8 + number * 200
        parts += (
            _mark(mark, at, 20, colour),
            f'<text x="{at + 12}" y="25">{words}</text>',
        )
    for number, version in enumerate(versions):
        left = _GAP + number * (_PANEL + _GAP)
        groups = (version.good, version.defective, version.learnt)
        vectors = [one.features for group in groups for one in group if one.features is not None]
        places = iter(embedded(vectors))
        parts += (
            (
                f'<rect x="{left}" y="{_TOP}" width="{_PANEL}" height="{_PANEL}" rx="6" '
                'fill="var(--card)" stroke="var(--edge)"/>'
            ),
            f'<text x="{left}" y="{_TOP - 28}">{escape(version.title)}</text>',
            f'<text x="{left}" y="{_TOP - 10}">AUROC {version.auroc:.3f}</text>',
        )
        for group, (mark, colour, _) in zip(groups, _MARKS, strict=True):
            for one in group:
                x, y = next(places) * (_PANEL - 2 * _MARGIN) + _MARGIN
                told = f"{one.item.path}, score {one.inspection.score:.4g}"
                parts.append(_mark(mark, left + x, _TOP + y, colour, told))
    height = _TOP + _PANEL + _GAP
    return (
        f'<svg viewBox="0 0 {width} {height}" width="100%" role="img" fill="var(--ink)">'
        f"<title>Features of {len(versions)} versions</title>{''.join(parts)}</svg>"
    )


_MARKS = (
    ("circle", "--good", "good, test"),
    ("triangle", "--defective", "defective, test"),
    ("cross", "--wrong", "defective, learnt from"),
)


def _mark(mark: str, x: float, y: float, colour: str, told: str = "") -> str:
    title = f"<title>{escape(told)}</title>"
    if mark == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="var({colour})">{title}</circle>'
    if mark == "triangle":
        path = f"M{x:.1f} {y - 4.5:.1f} l4.5 8 h-9 z"
        return (
            f'<path d="{path}" fill="none" stroke="var({colour})" stroke-width="1.5">{title}</path>'
        )
    path = f"M{x - 4:.1f} {y - 4:.1f} l8 8 m-8 0 l8 -8"
    return f'<path d="{path}" fill="none" stroke="var({colour})" stroke-width="2.5">{title}</path>'


def _whole_frames(versions: Sequence[Version]) -> Iterator[str]:
    yield "<h2>Boxes that are the whole frame, so that pass 2 has nothing to add</h2>"
    rows = []
    for version in versions:
        cells = []
        for group in (version.good, version.defective):
            whole = sum(not one.inspection.zoomed for one in group)
            cells.append(f"<td>{whole} of {len(group)} ({whole / len(group):.0%})</td>")
        rows.append(f"<tr><td>{escape(version.title)}</td>{''.join(cells)}</tr>")
    yield (
        '<div class="card"><table><tr><th>version</th><th>good, test</th><th>defective, test</th>'
        f"</tr>{''.join(rows)}</table></div>"
    )


def _overlays(versions: Sequence[Version], source: Source) -> Iterator[str]:
    """Attention and box of the same images under each version that looks somewhere."""
    looking = [version for version in versions if version.looks_somewhere]
    if not looking:
        return
    first = looking[0]
    kinds = sorted({one.item.kind for one in first.defective})[:_MOST_KINDS]
    places = np.linspace(0, len(first.good) - 1, _GOOD_SHOWN).round().astype(int)
    items = [next(one.item for one in first.defective if one.item.kind == kind) for kind in kinds]
    items += [first.good[place].item for place in sorted(set(places.tolist()))]
    yield "<h2>Attention and box</h2>"
    yield (
        '<p class="soft">From violet to yellow, each picture on its own scale; without a box the '
        "whole frame is seen again. The number is the score.</p>"
        '<div class="pictures wide">'
    )
    for item in items:
        pixels = read_listed(source, item)
        pictures = [("part", reduced(pixels, _SIDE))]
        for version in looking:
            found = next(
                one.inspection
                for one in (*version.good, *version.defective)
                if one.item.path == item.path
            )
            label = f"{version.title}: {found.score:.3g}"
            pictures.append((label, attended(pixels, found, max_side=_SIDE)))
        shown = "".join(
            f'<div><span>{escape(label)}</span><img src="{data_uri(picture)}" '
            f'alt="{escape(label)}"></div>'
            for label, picture in pictures
        )
        yield (
            f'<figure><div class="views">{shown}</div>'
            f"<figcaption>{escape(item.kind)} · {escape(item.path)}</figcaption></figure>"
        )
    yield "</div>"
