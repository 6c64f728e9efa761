"""The PyTorch twin: the same networks and views as sela_tf's, for what is trained beside it. Channels last, its best on a CPU."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """Two convolutions and a shortcut, projected where the shape changes."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        return functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x), inplace=True)


class Backbone(NamedTuple):
    features: nn.Module
    """Images [B, C, H, W] to the pooled features [B, width]."""
    width: int


def backbone(name: str, channels: int) -> Backbone:
    """`resnet8` or `resnet18`, as published."""
    large = name == "resnet18"
    widths, blocks = ((64, 128, 256, 512), 2) if large else ((16, 32, 64), 1)
    layers: list[nn.Module] = [
        nn.Conv2d(channels, widths[0], 7 if large else 3, 2 if large else 1, 3 if large else 1, bias=False),
        nn.BatchNorm2d(widths[0]),
        nn.ReLU(inplace=True),
        *[nn.MaxPool2d(3, 2, 1)] * large,
    ]
    before = widths[0]
    for stage, after in enumerate(widths):
        for i in range(blocks):
            layers.append(Block(before, after, 2 if stage and i == 0 else 1))
            before = after
    return Backbone(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), before)


def hidden_layer(before: int, units: int) -> list[nn.Module]:
    """As sela_tf's --hidden_units."""
    return [nn.Linear(before, units, bias=False), nn.BatchNorm1d(units), nn.ReLU(inplace=True)]


def standardised(views: torch.Tensor, mean: float = 128.0, deviation: float = 70.7) -> torch.Tensor:
    """Pixels in [0, 255] as the network takes them."""
    return ((views - mean) / deviation).contiguous(memory_format=torch.channels_last)


def views(images: torch.Tensor, jitter: float = 0.4) -> torch.Tensor:
    """Random resized crops (.3 to 1, reflected beyond the border), flips, brightness and contrast of whole batches [B, C, H, W] in [0, 255]."""
    count = len(images)
    area = 0.3 + 0.7 * torch.rand(count)
    ratio = torch.exp((2 * torch.rand(count) - 1) * np.log(4 / 3))
    height, width = torch.sqrt(area / ratio).clamp(max=1), torch.sqrt(area * ratio).clamp(max=1)
    sign = torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = width * sign, height
    theta[:, 0, 2] = (2 * torch.rand(count) - 1) * (1 - width)
    theta[:, 1, 2] = (2 * torch.rand(count) - 1) * (1 - height)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    crops = functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    crops = (crops * (1 - jitter + 2 * jitter * torch.rand(count, 1, 1, 1))).clamp(0, 255)
    mean = crops.mean((1, 2, 3), keepdim=True)
    return (mean + (1 - jitter + 2 * jitter * torch.rand(count, 1, 1, 1)) * (crops - mean)).clamp(0, 255)
