"""Each equation of the two-stage paper on a case whose value is known by hand."""

from math import log

import pytest
import torch

from train.two_stage.losses import (
    adversarial,
    anomaly_adversarial,
    attended_features,
    attention_error,
    autoencoding,
    generator_adversarial,
    total,
)


def logit(*probabilities):
    return torch.tensor([[log(p / (1 - p))] for p in probabilities])


def test_eq_1_is_the_value_of_the_discriminator():
    # E[log(1 - D(generated))] + E[log D(real)]
    found = adversarial(logit(0.8, 0.5), logit(0.25, 0.75))
    expected = (log(0.75) + log(0.25)) / 2 + (log(0.8) + log(0.5)) / 2
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_eq_2_is_as_eq_1_or_as_printed():
    real, generated = logit(0.8), logit(0.25)
    assert anomaly_adversarial(real, generated).item() == pytest.approx(log(0.75) + log(0.8))
    printed = anomaly_adversarial(real, generated, "as_printed").item()
    assert printed == pytest.approx(1 - log(0.25) + log(0.8))


def test_eq_2_as_printed_has_no_upper_bound():
    real, sure, surer = logit(0.8), torch.tensor([[-50.0]]), torch.tensor([[-500.0]])
    assert anomaly_adversarial(real, sure).item() == pytest.approx(log(0.8))
    printed = [anomaly_adversarial(real, one, "as_printed").item() for one in (sure, surer)]
    assert printed == pytest.approx([51 + log(0.8), 501 + log(0.8)])


def test_the_generator_makes_minus_log_d_small():
    assert generator_adversarial(logit(0.25)).item() == pytest.approx(-log(0.25))
    certain = torch.tensor([[-200.0]])  # log D stays finite where D is 0
    assert generator_adversarial(certain).item() == pytest.approx(200)


def test_eq_3_is_likelihood_and_divergence_of_each_value():
    images = torch.zeros(1, 3, 2, 2)
    reconstruction = torch.full_like(images, 0.2)
    mean, log_variance = torch.tensor([[[[1.0]], [[0.0]]]]), torch.tensor([[[[0.0]], [[log(2)]]]])
    found = autoencoding(images, reconstruction, mean, log_variance, deviation=0.1)
    likelihood = 0.04 / (2 * 0.01)
    divergence = (1 + 1 - 1 - 0) / 2 + (0 + 2 - 1 - log(2)) / 2
    assert found.item() == pytest.approx(likelihood + divergence / 12, rel=1e-6)
    nothing = torch.zeros_like(mean)
    assert autoencoding(images, images, nothing, nothing, deviation=0.1).item() == 0


def test_eq_4_is_the_squared_error_of_both_maps():
    normal, one = torch.full((1, 1, 2, 2), 0.9), torch.ones(1, 1, 2, 2)
    where = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])
    generated = torch.tensor([[[[0.5, 1.0], [0.0, 0.0]]]])
    found = attention_error(normal, one, generated, where).item()
    assert found == pytest.approx(0.01 + 0.25 / 4, rel=1e-5)


def test_eq_5_is_the_sum():
    assert total(*torch.tensor([1.0, 2.0, 4.0, 8.0])).item() == 15


def test_eq_6_weighs_features_by_their_mean_attention():
    features = torch.full((1, 2, 1, 2), 3.0)
    attention = torch.tensor([[[[1.0, 1.0, 0.0, 0.5], [1.0, 1.0, 0.5, 0.0]]]])
    found = attended_features(features, attention)
    assert found.tolist() == [[[[3.0, 0.75]], [[3.0, 0.75]]]]
