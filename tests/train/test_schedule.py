import pytest

from train.schedule import Cosine, Steps, learning_rate, stretched


def test_the_learning_rate_falls_in_steps_or_along_half_a_cosine():
    steps = Steps(every=2, factor=0.1)
    rates = [learning_rate(1.0, steps, epochs, of=4) for epochs in (0, 1.9, 2, 3.9)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1])
    rates = [learning_rate(1.0, Cosine(), epochs, of=4) for epochs in (0, 1, 2, 3, 4)]
    assert rates == pytest.approx([1, 0.853553, 0.5, 0.146447, 0], abs=1e-6)


def test_a_longer_training_has_longer_steps():
    assert stretched(Steps(every=10, factor=0.1), 0.5) == Steps(every=5, factor=0.1)
    assert stretched(Steps(every=10, factor=0.1), 0.01) == Steps(every=1, factor=0.1)
    assert stretched(Cosine(), 3) == Cosine()
