from dataclasses import replace

import pytest
import torch

from engine.errors import ConfigurationError, TrainingError
from tests.training_parts import trained
from train.backbones.resnet import ResNetBackbone
from train.checkpoint import CHECKPOINT
from train.memory_bank import MemoryBank
from train.weights import Weights


@pytest.mark.parametrize("frozen", [False, True])
def test_an_interrupted_training_ends_in_the_same_weights(images, line, tmp_path, frozen):
    settings = replace(line, epochs=3, least_steps=2, freeze=frozen)
    if frozen:
        settings = replace(settings, memory_bank=MemoryBank(prototypes=8, channels=8))
    heard = []
    straight = trained(settings, images, tmp_path / "straight", on_epoch=heard.append)

    def stop(epoch):
        if epoch.number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(settings, images, tmp_path / "broken", on_epoch=stop)
    epochs = []
    resumed = trained(settings, images, tmp_path / "broken", resume=True, on_epoch=epochs.append)
    assert [e.number for e in epochs] == [1, 2, 3]  # those before the interruption too
    assert [e.loss for e in epochs] == [e.loss for e in heard]
    assert epochs[0].seconds < epochs[1].seconds < epochs[2].seconds
    weights = straight.network.state_dict()
    assert all(
        torch.equal(tensor, weights[name]) for name, tensor in resumed.network.state_dict().items()
    )


def test_a_checkpoint_serves_its_own_training_only(images, line, tmp_path):
    settings = replace(line, least_steps=1)
    trained(settings, images, tmp_path)
    with pytest.raises(ConfigurationError, match="another seed"):
        trained(settings, images, tmp_path, seed=1, resume=True)
    tensors = ResNetBackbone(settings.backbone).state_dict()
    other = Weights(source="weights.pth", tensors=tensors)
    with pytest.raises(ConfigurationError, match="other weights"):
        trained(settings, images, tmp_path, weights=other, resume=True)
    (tmp_path / CHECKPOINT).write_bytes(b"damaged")
    with pytest.raises(TrainingError, match="start again without --resume"):
        trained(settings, images, tmp_path, resume=True)


def test_resuming_what_never_began_begins(images, line, tmp_path):
    epochs = []
    settings = replace(line, least_steps=1)
    trained(settings, images, tmp_path, resume=True, on_epoch=epochs.append)
    assert [e.number for e in epochs] == [1]


def test_a_loss_that_is_no_number_says_what_to_do(images, line, tmp_path):
    with pytest.raises(TrainingError, match=r"loss became \w+ in epoch 1, step \d.*--seed"):
        trained(replace(line, first_rate=1e30), images, tmp_path)


def test_an_epoch_that_cannot_be_saved_says_what_to_do(images, line, tmp_path):
    (tmp_path / f"{CHECKPOINT}.partial").mkdir()  # in its way, as a full disk would be
    with pytest.raises(TrainingError, match=r"epoch 1 cannot be saved .*--resume"):
        trained(replace(line, least_steps=1), images, tmp_path)
