"""A network without weights that sees both modalities alike: for exact tests of matching, inference and evaluation."""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sarmatch.model import Descriptors, Prefix


class PatchNet(nn.Module):
    """Descriptors are the grey values around each cell (coarse) and around each pixel (fine)."""

    def __init__(self) -> None:
        super().__init__()
        self.sar_encoder = self.optical_encoder = PatchEncoder()
        sides = {"consensus_cells": (3, 5), "deformable_cells": (), "field_rounds": 0}
        self.config = SimpleNamespace(sar_channels=1, optical_channels=3, **sides)
        self.source_weights = None
        self.plain_log_scale = nn.Parameter(torch.tensor(math.log(30.0)))
        self.coarse_log_scales = nn.Parameter(torch.full((3,), math.log(15.0)))
        self.fine_log_scales = nn.Parameter(torch.full((3,), math.log(3.0)))

    def describe(self, descriptors: Descriptors) -> Descriptors:
        return descriptors

    def describe_sar(self, image: Tensor, valid: Tensor | None = None) -> Descriptors:
        return self.sar_encoder(image)

    describe_optical = describe_sar

    def forward(self, sar: Tensor, optical: Tensor, *_: Tensor) -> tuple[Descriptors, Descriptors]:
        return self.describe_sar(sar), self.describe_optical(optical)


class PatchEncoder(nn.Module):
    """Grey values around each cell and each pixel, behind the interface of an encoder."""

    def prefix(self, image: Tensor) -> Prefix:
        return Prefix(image, (image,))

    def finish(self, prefix: Prefix) -> Descriptors:
        return self(prefix.image)

    coarse = finish

    def forward(self, image: Tensor) -> Descriptors:
        grey = image.mean(1, keepdim=True)
        fine = F.unfold(F.pad(grey, (2, 2, 2, 2), mode="replicate"), 5).unflatten(2, grey.shape[-2:])
        # Blurred, sampled every 4 px over 20 px: a descriptor must bear that a match lies between two cells.
        blurred = F.avg_pool2d(F.pad(grey, (3, 3, 3, 3), mode="replicate"), 7, 1)
        coarse = F.unfold(F.pad(blurred, (7, 6, 7, 6), mode="replicate"), 5, dilation=4, stride=4)
        coarse = coarse.unflatten(2, (grey.shape[-2] // 4, grey.shape[-1] // 4))
        return Descriptors(_normalise(coarse), _normalise(fine), None)


def _normalise(x: Tensor) -> Tensor:
    return F.normalize(x - x.mean(1, keepdim=True), dim=1)


def texture(size: int, seed: int = 0, smooth: int = 7) -> Tensor:
    """Random smooth texture (1, size, size) in [0, 1]."""
    noise = torch.randn(1, size + smooth - 1, size + smooth - 1, generator=torch.Generator().manual_seed(seed))
    image = F.avg_pool2d(noise, smooth, 1)
    return (image - image.min()) / (image.max() - image.min())
