"""A recipe that learns nothing but the average good part."""

from typing import Literal

import torch

from engine.spec import spec
from engine.view import ViewSpec
from train.datasets import TrainingImages
from train.features import first_good_views
from train.network import Maps, Network, atac_method
from train.recipes import Recipe, RecipeSettings, Run, Trained


@spec
class Average(RecipeSettings):
    type: Literal["average"] = "average"
    view: ViewSpec = ViewSpec(side=64)


class AverageNet(Network):
    def __init__(self, side: int) -> None:
        super().__init__()
        self.average = torch.nn.Parameter(torch.zeros(side, side, 3), requires_grad=False)

    def forward(self, views: torch.Tensor) -> Maps:
        score_map = torch.max_pool2d((views.float() - self.average).abs().mean(dim=3)[:, None], 8)
        return Maps(score_map[:, 0], torch.ones_like(score_map[:, 0]))  # nowhere: one pass


def open(settings: Average) -> Recipe:
    def train(images: TrainingImages, run: Run) -> Trained:
        network = AverageNet(settings.view.side)
        checkpoint = run.checkpoint(images, network=network)
        for _ in checkpoint.epochs(1):
            network.average.copy_(first_good_views(images, settings.view).float().mean(dim=0))
        return Trained.of(network, atac_method(network, settings.view), checkpoint)

    return Recipe(network=lambda: AverageNet(settings.view.side), train=train)
