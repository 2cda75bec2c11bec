import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.tables import __main__ as tables
from benchmarks.tables import report, rows, runs, sets
from train.datasets import draw_split, find_source
from train.evaluate import auroc
from train.rivals.ablations import DEVIATION_LOSS


@pytest.fixture
def small_tables(monkeypatch, tmp_path, parts, line, paper):
    """One tiny set and three tiny rows, with splits and ledgers in a folder of the test."""
    one = sets.ImageSet(name=parts.name)
    for module in (sets, tables, report):
        monkeypatch.setattr(module, "SETS", {parts.name: one})
    monkeypatch.setattr(sets, "MANIFESTS", tmp_path / "splits")
    monkeypatch.setattr(sets, "DEFECTS", (4, 1))
    small = {
        "line": rows.Row(title="line", profile=line),
        "memory": rows.Row(title="memory", profile=line, method=None),
        "deviation": rows.Row(
            title="deviation", profile=replace(paper, zoom_from=1), method=DEVIATION_LOSS
        ),
    }
    for module in (rows, runs, report, tables):
        monkeypatch.setattr(module, "ROWS", small)
    sets.read_manifest.cache_clear()
    tables.main(["draw", "--data", str(parts.parent)])
    yield tmp_path
    sets.read_manifest.cache_clear()


def run(small_tables, parts, *options):
    tables.main(
        [
            *("run", "--data", str(parts.parent), "--ledgers", str(small_tables / "ledgers")),
            *("--runs", str(small_tables / "runs"), "--defects", "1", "--draws", "0", *options),
        ]
    )
    return runs.read_ledger(small_tables / "ledgers")


def test_a_manifest_says_what_draw_split_said(small_tables, parts):
    manifest = sets.read_manifest(parts.name)
    source = find_source(parts, None, None)
    for draw in (0, 3):
        for defects in (4, 1):
            drawn = draw_split(source, defects=defects, hold_out=sets.HOLD_OUT, seed=draw)
            found = sets.split_of(manifest, draw, defects=defects)
            for place in ("train_good", "held_out_good", "train_defective", "test"):
                assert set(getattr(found, place)) == set(getattr(drawn, place)), place


def test_an_unseen_kind_is_neither_known_nor_left_out(small_tables, parts):
    split = sets.split_of(sets.read_manifest(parts.name), 0, defects=1, kind="spot")
    assert [item.kind for item in split.train_defective] == ["spot"]
    assert {item.kind for item in split.test} == {"good", "scratch"}


def test_labels_in_a_table_name_the_same_files(tmp_path, parts):
    root = tmp_path / "head"
    (root / "head").mkdir(parents=True)
    files = [*(parts / "train/good").iterdir(), *(parts / "test/spot").iterdir()]
    lines = ["id, hemorrhage"]
    for number, file in enumerate(sorted(files)):
        (root / "head" / f"{number:03}.png").write_bytes(file.read_bytes())
        lines.append(f"{number},{int('spot' in str(file))}")
    (root / "labels.csv").write_text("\n".join(lines))
    one = sets.ImageSet(name="head", labels="labels.csv")
    with sets._found(one, root) as source:
        split = sets._renamed(draw_split(source, defects=2, hold_out=0.1, seed=0), source, root)
    assert all(item.path.startswith("head/") for item in split.test)
    numbers = {int(item.path[5:8]) for item in (*split.training, *split.held_out_good, *split.test)}
    assert numbers == set(range(29))
    spots = {
        int(item.path[5:8]) for item in (*split.test, *split.train_defective) if item.defective
    }
    assert {lines[1 + number].partition(",")[2] for number in spots} == {"1"}


def test_shards_fill_the_ledgers_once_and_the_report_reads_them(small_tables, parts, capsys):
    first = run(small_tables, parts, "--shard", "0/2")
    assert {found.row for found in first} == {"line", "deviation"}
    done = run(small_tables, parts, "--shard", "1/2")
    assert {found.row for found in done} == {"line", "memory", "deviation"}
    assert run(small_tables, parts) == done  # nothing is left to do
    assert len(list((small_tables / "ledgers").glob("*.jsonl"))) == 2

    for found, record in done.items():
        test = sets.split_of(sets.read_manifest(parts.name), 0, defects=1).test
        labels = np.array([item.defective for item in test])
        assert record.ranking.auroc == auroc(np.array(record.scores), labels)
        assert record.run == found
        assert 0 <= record.pixels.aupro <= 1
    assert done[replace(found, row="deviation")].threshold is None  # trained on all good images
    held = done[replace(found, row="memory")]
    assert held.threshold.value == max(held.held_out_scores)

    capsys.readouterr()
    tables.main(["report", "--ledgers", str(small_tables / "ledgers")])
    page = capsys.readouterr().out
    for record in done.values():
        assert f"{record.ranking.auroc:.3f} (1)" in page
    assert "## `line` less the others" in page


def test_what_changed_is_measured_again(small_tables, parts, monkeypatch):
    before = run(small_tables, parts, "--rows", "memory")
    (found,) = before
    changed = replace(rows.ROWS["memory"].profile, local_mean=False)
    monkeypatch.setitem(rows.ROWS, "memory", replace(rows.ROWS["memory"], profile=changed))
    after = run(small_tables, parts, "--rows", "memory")
    assert after[found].profile["local_mean"] is False
    lines = (small_tables / "ledgers" / "shard-0-of-1.jsonl").read_text().splitlines()
    assert [json.loads(line)["profile"]["local_mean"] for line in lines] == [True, False]


def test_a_paired_difference_sees_what_single_spreads_hide(small_tables, parts):
    (record,) = run(small_tables, parts, "--rows", "memory").values()
    labels = report._labels(record.run)
    noise = np.random.default_rng(0).normal(0, 3, len(labels))
    one = replace(record, scores=tuple(noise + 2 * labels))
    worse = replace(record, scores=tuple(noise + 1 * labels))
    mean, low, high = report.paired_difference([[(one, worse)]])
    assert mean == pytest.approx(
        auroc(np.array(one.scores), labels) - auroc(np.array(worse.scores), labels)
    )
    assert low <= mean <= high
    assert report.paired_difference([[(one, one)]]) == (0, 0, 0)


@pytest.mark.parametrize(
    "name", ["mvtec_bottle", "mvtec_pill", "magnetic_tile", "brain_mri", "head_ct"]
)
def test_shipped_splits_keep_their_places_apart(name):
    manifest = sets.read_manifest(name)
    for draw in range(sets.DRAWS):
        one, ten = (sets.split_of(manifest, draw, defects=n) for n in (1, 10))
        assert (len(one.train_defective), len(ten.train_defective)) == (1, 10)
        assert {*one.train_defective} < {*ten.train_defective}
        for split in (one, ten):
            places = (*split.training, *split.held_out_good, *split.test)
            assert len({item.sha256 for item in places}) == len(places) == len(manifest.images)
        assert ten.held_out_good == one.held_out_good
