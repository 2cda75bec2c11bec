import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from engine import score as engine_score
from train.losses import (
    attention_loss,
    deviation,
    deviation_loss,
    drawn_reference,
    patch_loss,
    top_k_mean,
)

FINITE = st.floats(-1e3, 1e3, width=32)


@given(
    arrays.arrays(
        np.float32, st.tuples(st.just(3), st.integers(1, 14), st.integers(1, 14)), elements=FINITE
    ),
    st.sampled_from([0.05, 0.1, 0.2, 1.0]),
)
def test_training_and_serving_score_alike(maps, share):
    trained = top_k_mean(torch.from_numpy(maps), share).numpy()
    served = [engine_score.top_k_mean(one, share) for one in maps]
    np.testing.assert_allclose(trained, served, rtol=1e-5, atol=1e-5)


def test_only_the_top_k_patches_get_a_gradient():
    score_map = torch.arange(-24.0, 25.0).reshape(1, 7, 7).requires_grad_()
    top_k_mean(score_map, 0.1).sum().backward()
    # |−24|, |24|, |−23|, |23| are the four largest of 49.
    assert score_map.grad.flatten().nonzero().flatten().tolist() == [0, 1, 47, 48]
    assert score_map.grad.flatten()[[0, 48]].tolist() == [-0.25, 0.25]


def test_the_reference_is_drawn_once_by_seed():
    reference = drawn_reference(5000, top_k=0.1, seed=3)
    assert reference == drawn_reference(5000, top_k=0.1, seed=3)
    assert reference != drawn_reference(5000, top_k=0.1, seed=4)
    assert abs(reference.reference_mean) < 0.06
    assert abs(reference.reference_std - 1) < 0.05
    score = torch.tensor([2.0])
    assert deviation(score, reference).item() == pytest.approx(
        engine_score.deviation(2.0, reference)
    )


@pytest.mark.parametrize(
    ("dev", "defective", "expected"),
    [
        (3.0, False, (3.0, 1.0)),
        (-3.0, False, (3.0, -1.0)),
        (3.0, True, (7.0, -1.0)),
        (10.0, True, (0.0, 0.0)),
        (25.0, True, (0.0, 0.0)),
    ],
)
def test_loss_and_its_pull(dev, defective, expected):
    value = torch.tensor([dev], requires_grad=True)
    loss = deviation_loss(value, torch.tensor([defective]), 10.0)
    loss.backward()
    assert (loss.item(), value.grad.item()) == pytest.approx(expected)


@given(st.lists(st.tuples(st.floats(-50, 50, width=32), st.booleans()), min_size=1, max_size=16))
def test_the_hinge_is_never_negative(rows):
    devs = torch.tensor([dev for dev, _ in rows])
    labels = torch.tensor([label for _, label in rows])
    assert deviation_loss(devs, labels, 10.0).item() >= 0


def test_attention_is_judged_only_where_the_mask_is_known():
    attention = torch.full((2, 2, 2), 0.5, requires_grad=True)
    masks = torch.zeros(2, 2, 2)
    masks[0, 0, 0] = 1
    loss = attention_loss(attention, masks, torch.tensor([True, False]))
    loss.backward()
    assert attention.grad[0, 0, 0] < 0 < attention.grad[0, 1, 1]
    assert abs(attention.grad[0, 0, 0]) > attention.grad[0, 1, 1]  # defective patches are rarer
    assert not attention.grad[1].any()
    assert attention_loss(attention, masks, torch.tensor([False, False])) == 0


def test_attention_loss_vanishes_on_the_mask_itself():
    masks = (torch.rand(3, 4, 4) > 0.5).float()
    assert attention_loss(masks, masks, torch.tensor([True] * 3)).item() == pytest.approx(0)


def test_patches_are_pulled_like_images_where_the_mask_is_known():
    reference = engine_score.ScoreSpec(top_k=0.1, reference_mean=1.0, reference_std=2.0)
    # Deviations of |patches|: 0, 2; 4, 12; the last image's are of no consequence.
    score_map = torch.tensor([[[1.0, -5.0]], [[9.0, 25.0]], [[300.0, 300.0]]])
    masks = torch.tensor([[[0.0, 0.0]], [[1.0, 1.0]], [[0.0, 1.0]]])
    known = torch.tensor([True, True, False])
    assert patch_loss(score_map, masks, known, reference, 10.0).item() == pytest.approx(
        (0 + 2) / 2 + (6 + 0) / 2
    )
    nothing = torch.zeros(3, dtype=torch.bool)
    assert patch_loss(score_map, masks, nothing, reference, 10.0).item() == 0
