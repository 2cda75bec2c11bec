import pytest
from pydantic import ValidationError

from train.profile import LINE, PAPER, PROFILE_JSON, stages_up_to


def test_paper_is_the_letter_of_the_spec():
    assert (PAPER.view.side, PAPER.view.equalise, PAPER.view.crop_from) == (
        224,
        "before_resize",
        "view",
    )
    assert (PAPER.crop.omega, PAPER.crop.padding) == (0.4, 0)
    assert (PAPER.architecture, PAPER.stages, PAPER.freeze) == ("resnet50", ("layer4",), False)
    assert (PAPER.epochs, PAPER.batch, PAPER.learning_rate) == (30, 16, 1e-3)
    assert (PAPER.decay_every, PAPER.decay, PAPER.least_steps) == (10, 0.1, 20)
    assert (PAPER.top_k, PAPER.loss, PAPER.margin, PAPER.reference_draws) == (
        0.1,
        "hinge",
        10,
        5000,
    )
    assert (PAPER.standardise, PAPER.hold_out) == ("clip", 0)


@pytest.mark.parametrize("profile", [PAPER, LINE])
def test_a_profile_survives_its_file(profile):
    assert PROFILE_JSON.validate_json(PROFILE_JSON.dump_json(profile)) == profile


def test_an_odd_batch_cannot_be_halved():
    text = PROFILE_JSON.dump_json(PAPER).replace(b'"batch":16', b'"batch":15')
    with pytest.raises(ValidationError, match="multiple of 2"):
        PROFILE_JSON.validate_json(text)


def test_the_deepest_stage_cuts_and_extends():
    assert stages_up_to(("layer2", "layer3"), "layer2") == ("layer2",)
    assert stages_up_to(("layer2", "layer3"), "layer3") == ("layer2", "layer3")
    assert stages_up_to(("layer4",), "layer3") == ("layer3",)


def test_self_attention_would_mix_several_heads():
    text = PROFILE_JSON.dump_json(PAPER).replace(b'"heads":1', b'"heads":2')
    with pytest.raises(ValidationError, match="would mix the heads"):
        PROFILE_JSON.validate_json(text)


def test_a_memory_of_features_that_change_is_refused():
    text = PROFILE_JSON.dump_json(LINE).replace(b'"freeze":true', b'"freeze":false')
    with pytest.raises(ValidationError, match="need a frozen trunk"):
        PROFILE_JSON.validate_json(text)
