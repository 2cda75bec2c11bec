import pickle
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.two_stage import cifar
from benchmarks.two_stage.cifar import read_cifar
from benchmarks.two_stage.dcgan import DCGAN_JSON, DcganJob, DcganResult, dcgan_scores
from benchmarks.two_stage.jobs import RESULT_JSON, SCORES, Group, Job, Result
from benchmarks.two_stage.plan import BASE, OPTIONS, chosen, selection, tables, with_settings
from benchmarks.two_stage.report import accuracy, report
from train.pixels import PixelRanking


def write_batches(folder, images=4):
    """Batches as they are published: rows of red, green and blue, keys of bytes."""
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        data = np.zeros((images, 3072), np.uint8)
        data[:, :1024], data[:, 1024:2048], data[:, 2048:] = number, 10, 20
        batch = {b"data": data, b"labels": [(number + i) % 10 for i in range(images)]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))


def test_cifar_is_read_from_its_python_batches(tmp_path):
    write_batches(tmp_path)
    train, test = read_cifar(tmp_path)
    assert (train.pixels.shape, test.pixels.shape) == ((20, 32, 32, 3), (4, 32, 32, 3))
    assert train.pixels[4, 5, 6].tolist() == [1, 10, 20]
    assert train.labels[:8].tolist() == [0, 1, 2, 3, 1, 2, 3, 4]
    assert len(train.of(1)) == 2


class Harm:
    def __reduce__(self):
        return (print, ("harm",))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (pickle.dumps(Harm()), "holds builtins.print"),
        (pickle.dumps({b"data": np.zeros((2, 5), np.uint8), b"labels": [0, 1]}), "no batch of 32"),
        (pickle.dumps({b"labels": [0]}), "no Python batch"),
        (b"", "no Python batch"),
    ],
)
def test_what_is_no_batch_is_refused(tmp_path, content, said):
    write_batches(tmp_path)
    (tmp_path / "data_batch_3").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_cifar(tmp_path)


def test_the_classes_are_ten():
    assert len(set(cifar.CLASSES)) == 10


@pytest.mark.parametrize("variant", ["base", "R&P&J", "semi"])
def test_a_dcgan_scores_every_image(variant):
    rng = np.random.default_rng(0)
    good, other = (rng.integers(0, 256, (6, 64, 64, 3), np.uint8) for _ in range(2))
    scores = dcgan_scores(good, other, other, variant=variant, seed=0, steps=1)
    assert scores.shape == (6,)
    assert np.isfinite(scores).all()


def result(
    variant, name="mvtec_bottle", pixels=0.9, stage="table", draw=0, higher=1.0, settings=BASE
):
    group = Group(
        scores=dict.fromkeys(SCORES, (0.1, 0.2, higher, 2.0)),
        defective=(False, False, True, True),
        kinds=("good", "good", "spot", "spot"),
        pixels=PixelRanking(auroc=pixels, aupro=0.5),
    )
    job = Job(stage=stage, set=name, draw=draw, variant=variant, settings=settings)
    return Result(
        job=job,
        groups={"validation": group, "unseen": group},
        curves={"loss": (1.0,)},
        warnings=(),
        seconds=2.0,
        train_seconds=1.0,
        device="cpu",
        finished="2026-01-01T00:00:00+00:00",
    )


def test_only_settings_that_are_better_on_both_sets_together_are_chosen():
    def of(variant, bottle, pill):
        return [
            result(variant, "mvtec_bottle", bottle, "select"),
            result(variant, "mvtec_pill", pill, "select"),
        ]

    found = [*of("base", 0.8, 0.8), *of("rectangle", 0.82, 0.81), *of("layer3-only", 0.85, 0.7)]
    settings, leads = chosen(BASE, found)
    assert settings == with_settings(BASE, OPTIONS["rectangle"])
    assert leads["rectangle"] == pytest.approx(0.015)
    assert leads["layer3-only"] == pytest.approx(-0.025)


def test_each_option_changes_something_and_no_choice_sees_the_test():
    changed = {name for name, changes in OPTIONS.items() if with_settings(BASE, changes) != BASE}
    assert changed == OPTIONS.keys() - {"half-as-long"}
    of = {job.variant: job.settings for job in selection(BASE)}
    assert of["half-as-long"].adgan_from == of["base"].adgan_from // 2
    assert {job.stage for job in selection(BASE)} == {"select"}
    assert len({job.key for job in tables(BASE)}) == len(tables(BASE))


def test_accuracy_is_the_mean_of_both_shares_at_the_highest_held_out_good_score():
    assert accuracy(result("full")) == 1.0
    assert accuracy(result("full", higher=0.15)) == 0.75


def test_the_report_has_the_papers_tables(tmp_path):
    found = [result("full", draw=draw, pixels=0.9 + draw / 100) for draw in range(3)]
    found += [result("without_attention", pixels=0.7)]
    (tmp_path / "jobs.jsonl").write_bytes(b"\n".join(map(RESULT_JSON.dump_json, found)) + b"\n")
    job = DcganJob(set="mvtec_pill", draw=0, variant="base")
    small = DcganResult(job=job, scores=(0.0, 1.0), defective=(False, True), seconds=1.0)
    (tmp_path / "dcgan.jsonl").write_bytes(DCGAN_JSON.dump_json(small) + b"\n")
    text = report(tmp_path, tmp_path / "nothing")
    assert "| mvtec_bottle | 0.910 ± 0.010 | 0.95 | 0.500 ± 0.000 |" in text
    assert "| (a) with L_adv_ano, without L_att | 0.700 (1) | 0.75 |" in text
    assert "| (c) with both | 0.900 (1) | 0.92 |" in text  # of the same draw
    assert "| base | 1.000 (1) | not run here | 0.583 |" in text
    assert "| mvtec_pill | – | 0.91 |" in text
    assert text.endswith("## Larger views, longer trainings\n\nOnly one scale has been measured.\n")


def test_other_scales_have_a_table_of_their_own(tmp_path):
    small = replace(BASE.lasting(16), view=replace(BASE.view, side=128))
    found = [result("full", draw=draw, settings=small) for draw in range(3)]
    found += [result("without_attention", pixels=0.7, settings=replace(small, epochs=9))]
    found += [result("full", pixels=0.96), result("full", "head_ct", draw=1)]
    (tmp_path / "jobs.jsonl").write_bytes(b"\n".join(map(RESULT_JSON.dump_json, found)) + b"\n")
    text = report(tmp_path, tmp_path / "nothing")
    assert "Views of 128 px, 16 epochs; the recipe has 256 px and 40 epochs." in text
    assert "| mvtec_bottle | 0.900 ± 0.000 | 0.95 |" in text
    assert "| (a) with L_adv_ano, without L_att | 0.700 (1) | 0.75 |" in text
    _, scales = text.split("## Larger views, longer trainings")
    assert [line.split(" | ")[:4] for line in scales.splitlines()[4:]] == [
        ["| mvtec_bottle, draw 0", "128 px", "16", "0.900"],
        ["| mvtec_bottle, draw 0", "256 px", "40", "0.960"],
    ]
