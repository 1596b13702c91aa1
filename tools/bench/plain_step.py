"""A BYOL step as it is usually written: eager, AMP, channels_last, with torchvision and torch.optim."""

import copy
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.config import SMALL_IMAGE
from pipelines.errors import UserError
from vssl.engine.config import Config
from vssl.runtime.precision import resolve_amp

__all__ = ["LEARNING_RATE", "TAU", "PlainStep"]

LEARNING_RATE, TAU = 1e-3, 0.99  # keep weights finite; the time does not depend on the values


class PlainStep:
    """BYOL (arXiv 2006.07733) as it is usually written: each network processes one view at a time."""

    def __init__(self, config: Config, device: torch.device) -> None:
        if not hasattr(torchvision.models, config.model.backbone):
            raise UserError(f"model.backbone={config.model.backbone} is not a torchvision model: use resnet18")
        self.device, self.amp = device, resolve_amp(config.train.amp, device)
        backbone = getattr(torchvision.models, config.model.backbone)(weights=None)
        method: Any = config.method  # BYOL's options, none of them null
        width, hidden, latent = backbone.fc.in_features, method.projector_hidden, method.latent
        backbone.fc = nn.Identity()
        if config.model.stem == "cifar" or (config.model.stem == "auto" and config.data.image_size <= SMALL_IMAGE):
            backbone.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            backbone.maxpool = nn.Identity()
        self.online = nn.Sequential(backbone, _mlp(width, hidden, latent))
        self.predictor = _mlp(latent, method.predictor_hidden, latent)
        for network in (self.online, self.predictor):
            network.to(device, memory_format=torch.channels_last).train()
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        weights = [*self.online.parameters(), *self.predictor.parameters()]
        optim: Any = config.optim  # SGD's options, none of them null
        self.optimizer = torch.optim.SGD(
            weights, LEARNING_RATE, momentum=optim.momentum, weight_decay=optim.weight_decay
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.amp == torch.float16)

    def __call__(self, first: Tensor, second: Tensor) -> None:
        """Train on the two views of a batch, [B, 3, S, S]."""
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, dtype=self.amp, enabled=self.amp is not None):
            with torch.no_grad():
                target_1, target_2 = self.target(first), self.target(second)
            prediction_1, prediction_2 = self.predictor(self.online(first)), self.predictor(self.online(second))
            cosine = F.cosine_similarity(prediction_1, target_2) + F.cosine_similarity(prediction_2, target_1)
            loss = 4 - 2 * cosine.mean()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        with torch.no_grad():
            for target, online in zip(self.target.parameters(), self.online.parameters(), strict=True):
                target.lerp_(online, 1 - TAU)


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, outputs)
    )
