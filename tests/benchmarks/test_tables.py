import json
import shutil
from dataclasses import replace
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks.baselines import memory_bank
from benchmarks.baselines.ablations import DEVIATION_LOSS
from benchmarks.tables import __main__ as tables
from benchmarks.tables import cited, compare, figures, report, rows, runs, sets
from train.backbones.resnet import ResNet, ResNetBackbone
from train.datasets import draw_split, find_source
from train.evaluate import auroc
from train.recipes import line as line_recipe
from train.weights import Weights


def patched(monkeypatch, folder, parts, line, paper):
    """One tiny set and tiny rows, with splits in `folder`."""
    one = sets.ImageSet(name=parts.name)
    for module in (sets, tables):
        monkeypatch.setattr(module, "SETS", {parts.name: one})
    for module in (sets, runs, report, figures, tables):
        monkeypatch.setattr(module, "DEFECTS", (4, 1))
    monkeypatch.setattr(sets, "MANIFESTS", folder)
    small = {
        "line": rows.Row(title="line", settings=line),
        "memory": rows.Row(title="memory", settings=line, train=memory_bank.train, learns=False),
        "deviation": rows.Row(
            title="deviation", settings=replace(paper, zoom_from=1), train=DEVIATION_LOSS.train
        ),
    }
    option = rows.Row(title="no pass 2", settings=replace(line, zoom_from=1))
    for module in (rows, report, tables):
        monkeypatch.setattr(module, "ROWS", small)
        monkeypatch.setattr(module, "OPTIONS", {"line-without-zoom": option})
    sets.read_manifest.cache_clear()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, parts, line, paper):
    """The folder of the tiny set's splits, and what its memory was measured as."""
    root = tmp_path_factory.mktemp("drawn")
    with pytest.MonkeyPatch.context() as monkeypatch:
        patched(monkeypatch, root / "splits", parts, line, paper)
        tables.main(["draw", "--data", str(parts.parent)])
        (record,) = run(root, parts, "--rows", "memory").values()
    return root / "splits", record


@pytest.fixture
def small_tables(monkeypatch, tmp_path, drawn, parts, line, paper):
    patched(monkeypatch, drawn[0], parts, line, paper)
    yield tmp_path
    sets.read_manifest.cache_clear()


def weights_to(stage):
    """ResNet-50 weights whose deepest stage this is."""
    tensors = ResNetBackbone(ResNet(stages=(stage,))).state_dict()
    return Weights(source="resnet50.pth", tensors=tensors)


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


def test_unseen_kinds_have_a_table_with_a_mean(small_tables, parts, capsys):
    done = run(small_tables, parts, "--rows", "memory", "--unseen-kinds")
    assert {found.kind for found in done} == {"scratch", "spot"}
    values = {found.kind: record.ranking.auroc for found, record in done.items()}
    capsys.readouterr()
    tables.main(["report", "--ledgers", str(small_tables / "ledgers")])
    page = capsys.readouterr().out
    for kind, value in values.items():
        assert f"| {parts.name} | {kind} | 1 | {value:.3f} (1) |" in page
    assert f"| {parts.name} | **mean** |  | **{np.mean(list(values.values())):.3f}** |" in page


def test_types_may_be_named_as_numbers_are(small_tables, parts, monkeypatch):
    shutil.copytree(parts, small_tables / "data/coded")
    for number, kind in enumerate(("scratch", "spot"), start=1):
        for folder in ("test", "ground_truth"):
            place = small_tables / "data/coded" / folder
            (place / kind).rename(place / str(number))
    monkeypatch.setattr(sets, "MANIFESTS", small_tables / "splits")
    manifest = sets.write_manifest("coded", small_tables / "data")
    for draw in range(sets.DRAWS):
        assert len(sets.split_of(manifest, draw, defects=1).train_defective) == 1
        of_one = sets.split_of(manifest, draw, defects=4, kind="1")
        assert {item.kind for item in of_one.train_defective} == {"1"}
        assert {item.kind for item in of_one.test if item.defective} == {"2"}


def test_a_set_without_good_images_to_test_is_refused(small_tables, parts, monkeypatch, capsys):
    shutil.copytree(parts, small_tables / "data/untested")
    shutil.rmtree(small_tables / "data/untested/test/good")
    monkeypatch.setattr(sets, "MANIFESTS", small_tables / "splits")
    with pytest.raises(SystemExit):
        tables.main(["draw", "--data", str(small_tables / "data"), "--sets", "untested"])
    assert "no good image to test" in capsys.readouterr().err


def test_any_folder_can_be_a_set(small_tables, parts, monkeypatch, capsys):
    data = small_tables / "data"
    data.mkdir()
    (data / "screw").symlink_to(parts)
    monkeypatch.setattr(sets, "MANIFESTS", small_tables / "splits")
    options = "--data", str(data), "--ledgers", str(small_tables / "ledgers")
    only = "--sets", "screw", "--rows", "memory", "--defects", "1", "--draws", "0"
    tables.main(["run", *options, "--runs", str(small_tables / "runs"), *only])
    assert sets.MANIFEST_JSON.validate_json((small_tables / "splits/screw.json").read_bytes())
    report_of = ["report", "--ledgers", str(small_tables / "ledgers")]
    capsys.readouterr()
    tables.main(report_of)
    assert "| memory | screw | 1 |" in capsys.readouterr().out

    (small_tables / "splits/screw.json").unlink()
    tables.main(report_of)  # a ledger from elsewhere, its splits left behind
    assert "screw" not in capsys.readouterr().out


def test_weights_of_the_same_name_are_not_the_same_weights(small_tables, parts):
    file = small_tables / "weights.safetensors"
    given = "--rows", "deviation", "--weights", str(file)
    backbone = ResNetBackbone(ResNet(architecture="resnet18", stages=("layer3",))).state_dict()
    save_file(backbone, file)
    before = run(small_tables, parts, *given)
    assert run(small_tables, parts, *given) == before
    save_file(backbone | {"conv1.weight": backbone["conv1.weight"] + 0.01}, file)
    after = run(small_tables, parts, *given)
    ((where, record),) = after.items()
    assert record.scores != before[where].scores
    assert record.pretrained_sha256 != before[where].pretrained_sha256


def test_a_row_takes_the_weights_of_its_architecture(small_tables, parts, capsys):
    resnet18, resnet50 = (small_tables / f"{name}.safetensors" for name in ("r18", "r50"))
    backbone = ResNetBackbone(ResNet(architecture="resnet18", stages=("layer3",)))
    save_file(backbone.state_dict(), resnet18)
    save_file({"layer1.0.conv3.weight": torch.zeros(1)}, resnet50)
    both = run(small_tables, parts, "--rows", "memory", "--weights", str(resnet50), str(resnet18))
    assert [record.pretrained for record in both.values()] == [resnet18.name]
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run(small_tables, parts, "--rows", "memory", "--weights", str(resnet50))
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "r50.safetensors" in said
    assert "a backbone of resnet18" in said
    assert "Traceback" not in said

    with pytest.raises(SystemExit) as stopped:
        run(small_tables, parts, "--rows", "memory", "--weights", str(parts / "absent.pth"))
    assert stopped.value.code == 2
    assert "--weights" in capsys.readouterr().err


def test_a_set_that_is_not_there_is_one_line(small_tables, parts, capsys):
    with pytest.raises(SystemExit) as stopped:
        tables.main(["run", "--data", str(parts.parent), "--sets", "nowhere"])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "nowhere" in said
    assert said.count("\n") == 1


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
    changed = replace(rows.ROWS["memory"].settings, local_mean=False)
    monkeypatch.setitem(rows.ROWS, "memory", replace(rows.ROWS["memory"], settings=changed))
    after = run(small_tables, parts, "--rows", "memory")
    assert after[found].recipe["local_mean"] is False
    lines = (small_tables / "ledgers" / "shard-0-of-1.jsonl").read_text().splitlines()
    assert [json.loads(line)["recipe"]["local_mean"] for line in lines] == [True, False]


def test_a_report_shows_one_recipe_a_row(small_tables, drawn):
    old = drawn[1]
    later = replace(old.run, draw=1)
    new = replace(
        old,
        run=later,
        split_sha256=runs.split_sha256(later.split()),
        finished="2999",
        recipe=old.recipe | {"epochs": 99},
    )
    assert report.of_today([new, old]) == [new]
    assert report.of_today([replace(new, split_sha256=old.split_sha256)]) == []
    other = replace(old, recipe=new.recipe, pretrained_sha256="0" * 64)
    assert report.of_today([new, other]) == [new]
    elsewhere = replace(new, manifest_sha256="0" * 64)
    assert report.of_today([elsewhere]) == []
    gone = replace(new, run=replace(new.run, row="line-with-wheels"))
    assert report.of_today([new, gone]) == [new]


def test_options_are_validated_on_folds_that_no_test_image_is_in(small_tables, parts, capsys):
    done = run(small_tables, parts, "--rows", "options", "--folds", "0", "1")
    assert {(found.row, found.fold) for found in done} == {
        (row, fold) for row in ("line", "line-without-zoom") for fold in (0, 1)
    }
    whole = sets.split_of(sets.read_manifest(parts.name), 0, defects=4)
    of_test = {item.sha256 for item in whole.test}
    for found in done:
        fold = found.split()
        assert not of_test & {item.sha256 for item in (*fold.training, *fold.test)}
        assert len(done[found].scores) == len(fold.test)
    assert list((small_tables / "runs").iterdir()) == []  # no figure will ask for a fold
    assert run(small_tables, parts, "--rows", "options", "--folds", "0", "1") == done

    capsys.readouterr()
    tables.main(["report", "--ledgers", str(small_tables / "ledgers")])
    page = capsys.readouterr().out
    ours = report.by_option(done.values())["line"][parts.name].values()
    assert f"| `line` |  | {compare.auroc_of(list(ours)):.3f} (2) |" in page
    assert "| `line-without-zoom` | no pass 2 |" in page


def test_an_option_stands_beside_the_line_that_it_is_an_option_of(small_tables, parts):
    done = run(small_tables, parts, "--rows", "options", "--folds", "0")
    option = next(record for found, record in done.items() if found.row != "line")
    other = replace(option, recipe=option.recipe | {"local_mean": False})
    line = next(record for found, record in done.items() if found.row == "line")
    assert set(report.by_option([line, option])) == {"line", "line-without-zoom"}
    assert set(report.by_option([line, other])) == {"line"}


def test_folds_part_what_a_split_knows(small_tables, parts):
    whole = sets.split_of(sets.read_manifest(parts.name), 0, defects=4)
    known = {*whole.training, *whole.held_out_good}
    seen = []
    for number in range(sets.FOLDS):
        fold = sets.fold_of(whole, number)
        assert {*fold.training, *fold.test} == known
        assert len(fold.training) + len(fold.test) == len(known)
        seen += fold.test
    assert len({*seen}) == len(seen)
    assert {item for item in seen if item.defective} == {*whole.train_defective}


def test_every_option_is_line_but_for_what_its_name_says():
    for name, option in rows.OPTIONS.items():
        assert name.startswith("line-")
        assert option.settings != rows.LINE
        assert option.train is line_recipe.train
        assert len({field.partition(".")[0] for field in rows.changed_by(name)}) <= 2


def test_every_option_is_another_with_weights_that_end_at_layer3_too():
    weights = weights_to("layer3")
    line = rows.settled_settings(rows.ROWS["line"], weights)
    assert line.backbone.stages == ("layer2", "layer3")
    for option in rows.OPTIONS.values():
        assert rows.settled_settings(option, weights) != line
    assert rows.settled_settings(rows.ROWS["paper"], weights).backbone.stages == ("layer3",)


@pytest.fixture
def measured(small_tables, drawn):
    return drawn[1], compare.defective_of(drawn[1])


def scored(record, scores, **where):
    return replace(record, scores=tuple(scores), run=replace(record.run, **where))


def test_a_frozen_row_is_its_row_but_for_the_backbone():
    assert len(rows.FROZEN) == 7
    for name, row in rows.FROZEN.items():
        whole = rows.ROWS[rows.cited_as(name)]
        frozen = {"freeze": True, "initialisation": "fan_in", "synthetic_each": 2}
        assert (row.settings, row.train) == (replace(whole.settings, **frozen), whole.train)
        assert not whole.settings.freeze
    assert cited.cited("mvtec_pill", "paper_frozen", 10) == 0.921


def test_a_paired_difference_sees_what_single_spreads_hide(measured):
    record, labels = measured
    noise = np.random.default_rng(0).normal(0, 3, len(labels))
    one, worse = (scored(record, noise + gain * labels) for gain in (2, 1))
    found = compare.paired_difference({"set": [(one, worse)]})
    assert found.mean == pytest.approx(
        auroc(np.array(one.scores), labels) - auroc(np.array(worse.scores), labels)
    )
    assert found.low <= found.mean <= found.high
    same = compare.paired_difference({"set": [(one, one)]})
    assert (same.mean, same.low, same.high) == (0, 0, 0)


def test_the_interval_is_that_of_resampled_images(measured, monkeypatch):
    """Against the bootstrap spelt out: images drawn by label, AUROC of both rows computed anew."""
    monkeypatch.setattr(compare, "RESAMPLES", 4000)
    record, labels = measured
    rng = np.random.default_rng(1)
    one, other = (
        scored(record, rng.normal(0, 1, len(labels)).round(1) + gain * labels) for gain in (1, 0.3)
    )
    good, defective = np.flatnonzero(~labels), np.flatnonzero(labels)
    expected = []
    for _ in range(4000):
        chosen = np.concatenate(
            [rng.choice(good, len(good)), rng.choice(defective, len(defective))]
        )
        values = [auroc(np.array(row.scores)[chosen], labels[chosen]) for row in (one, other)]
        expected.append(values[0] - values[1])
    found = compare.paired_difference({"set": [(one, other)]})
    assert (found.low, found.high) == pytest.approx(np.quantile(expected, (0.025, 0.975)), abs=0.05)


def test_draws_of_the_same_images_are_no_new_images(measured):
    """Three draws that say the same are about as uncertain as one: they tested the same parts."""
    record, _ = measured
    rng = np.random.default_rng(2)
    said = {}  # the scores of an image by both rows, whatever the draw

    def pair(draw):
        at = replace(record.run, draw=draw)
        test = at.split().test
        for item in test:
            said.setdefault(item.sha256, rng.normal([item.defective, 0.3 * item.defective]))
        return [scored(record, [said[i.sha256][row] for i in test], draw=draw) for row in (0, 1)]

    once, thrice = (
        compare.paired_difference({"set": [tuple(pair(draw)) for draw in draws]})
        for draws in ((0,), (0, 1, 2))
    )
    assert thrice.high - thrice.low > 0.8 * (once.high - once.low)  # not 1 / √3 of it


def test_draws_and_sets_count_each_as_much(measured):
    record, labels = measured
    best, worst = (scored(record, gain * labels) for gain in (1, -1))
    draws = {"a": [(best, worst)], "b": [(best, best)]}
    found = compare.paired_difference(draws)
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    wider = compare.paired_difference(draws, resample_sets=True)
    assert (wider.mean, wider.low, wider.high) == pytest.approx((0.5, 0, 1))
    other = scored(best, best.scores, draw=1)
    found = compare.paired_difference({"a": [(best, worst), (other, other)]})
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0, 1))


def test_means_over_sets_spread_over_whole_draws():
    complete = {"a": {0: 0.9, 1: 0.8}, "b": {0: 0.7, 1: 0.9}}
    assert report._mean_of_sets(complete, 2) == report.counted([0.8, 0.85])
    assert report._mean_of_sets(complete, 3) == f"{report.counted([0.8, 0.85])}, 2 of 3 sets"
    ragged = {"a": {0: 0.9}, "b": {0: 0.7, 1: 0.9}}
    assert report._mean_of_sets(ragged, 2) == "0.850"


def test_goals_are_the_papers_or_higher():
    assert cited.goal("mvtec_bottle", 1) == pytest.approx(0.997)
    assert cited.goal("mvtec_pill", 1) == 0.821
    assert cited.goal("mvtec_pill", 10) == 0.960
    assert cited.goal("magnetic_tile", 1) is None
    assert cited.goal("screw", 10) == cited.goal("mvtec_screw", 10) == 0.997
    assert cited.goal("screw", 5) is None


def test_table_1s_columns_have_the_means_it_prints():
    classes = cited._STEPS_TEN
    for table, means in (
        (cited._TABLE_1[10], (0.945, 0.959, 0.932, 0.973)),
        (cited._TABLE_1[1], (0.794, 0.883, 0.812, 0.901)),
        (cited._STEPS_TEN, (0.863, 0.944)),  # .862 in print, .863 by its own figures
    ):
        columns = np.array([table[name] for name in classes])
        assert tuple(columns.mean(axis=0)) == pytest.approx(means, abs=0.0006)


def test_unseen_kinds_are_cited_too():
    means = {  # as printed, but .935 for DRA with ten of tile, which its own figures make .953
        ("tile", 10): (0.901, 0.953, 0.959),
        ("metal_nut", 10): (0.965, 0.945, 0.987),
        ("tile", 1): (0.771, 0.923, 0.933),
        ("metal_nut", 1): (0.855, 0.932, 0.956),
    }
    for (name, defects), printed in means.items():
        figures_of = [of for (one, _), of in cited._UNSEEN[defects].items() if one == name]
        assert tuple(np.mean(figures_of, axis=0)) == pytest.approx(printed, abs=0.0011)
    assert cited.cited("mvtec_tile", "line", 10, kind="oil") == 0.941
    assert cited.cited("tile", "dra_frozen", 1, kind="crack") == 0.975
    assert cited.cited("tile", "memory", 1, kind="crack") is None
    assert cited.cited("mvtec_pill", "line", 10, kind="crack") is None


def test_figures_go_on_from_what_was_trained(small_tables, parts, monkeypatch, capsys):
    run(small_tables, parts, "--defects", "4", "--rows", "line", "deviation")
    folders = [str(small_tables / "runs"), str(small_tables / "figures")]
    command = ["figures", "--data", str(parts.parent), "--runs", folders[0], "--out", folders[1]]
    tables.main([*command, "--rows", "deviation", "line", "memory"])
    page = (small_tables / "figures" / f"{parts.name}.html").read_text()
    assert capsys.readouterr().out.strip().endswith(f"{parts.name}.html")
    assert "defective, learnt from, n = 4" in page
    drawings = {path.stem for path in (small_tables / "figures").glob("*.svg")}
    assert drawings == {
        f"{parts.name}-{kind}" for kind in ("features", "scores-line", "scores-memory")
    }
    for path in (small_tables / "figures").glob("*.svg"):
        text = path.read_text()
        assert ET.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
        assert "base64" not in text  # photographs stay on the page
    marks = ET.fromstring((small_tables / "figures" / f"{parts.name}-features.svg").read_text())
    titles = [one.text for one in marks.iter("{http://www.w3.org/2000/svg}title")]
    assert sum("score" in (title or "") for title in titles) == 2 * 16  # 6 good, 6 + 4 defective
    assert "6 of 6 (100%)" in page  # what has no attention never looks closer


def test_tsne_keeps_groups_together():
    rng = np.random.default_rng(0)
    groups = rng.normal(0, 1, (2, 20, 8)) + np.array([0, 12])[:, None, None]
    places = figures.embedded([*groups[0], *groups[1]])
    assert places.shape == (40, 2)
    assert places.min() == 0
    assert places.max() == 1
    gaps = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(gaps, np.inf)
    assert (gaps.argmin(axis=1) // 20 == np.arange(40) // 20).all()


def test_features_behind_a_score_are_those_of_its_patches():
    features = torch.arange(24.0).reshape(2, 3, 4)
    score_map = np.zeros((3, 4), dtype=np.float32)
    score_map[1, 2], score_map[2, 3] = -9, 5
    assert figures.behind_score(features, score_map, 2 / 12).tolist() == [8.5, 20.5]
    assert figures.overlap([1, 1, 1, 1], [1, 1, 9, 9], 5) == 0.5


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
