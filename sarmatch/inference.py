"""Matching two images with a trained network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sarmatch.evaluation import EvaluationCrops
from sarmatch.matches import Matches
from sarmatch.matching import RawMatches, match_descriptors
from sarmatch.models import SarOpticalNet
from sarmatch.training import cell_valid

MULTIPLE = 16
"""Sides of what the encoders take are multiples of this (stride of the coarsest pyramid level)."""


class Matcher:
    """A trained network and the device it runs on.

    Attributes:
        net: in evaluation mode.
        use_consensus: False gives the paper-literal matcher, in which each cell decides by itself.
    """

    def __init__(self, net: SarOpticalNet, device: str | torch.device = "cpu", use_consensus: bool = True) -> None:
        self.device = torch.device(device)
        self.net = net.to(self.device).eval()
        self.use_consensus = use_consensus

    @torch.no_grad()
    def match_tensors(
        self,
        sar: Tensor,
        optical: Tensor,
        search_radius: float,
        offset: tuple[int, int] = (0, 0),
        sar_valid: Tensor | None = None,
        optical_valid: Tensor | None = None,
    ) -> RawMatches:
        """Match two images of equal size, small enough for one volume (up to about 320 px a side).

        Args:
            sar, optical: (C, H, W) float32 in [0, 1].
            search_radius: px around the predicted position.
            offset: predicted displacement (dx, dy) in cells of 4 px.
            sar_valid, optical_valid: (H, W) bool; None means all pixels carry data.
        """
        (sar_in, sar_mask), (optical_in, optical_mask) = (
            self._prepare(image, valid) for image, valid in ((sar, sar_valid), (optical, optical_valid))
        )
        descriptors = self.net(sar_in, optical_in)
        return match_descriptors(
            self.net, *descriptors, search_radius, offset, sar_mask, optical_mask, use_consensus=self.use_consensus
        )

    def match_crops(self, crops: EvaluationCrops, search_radius: float | None) -> Matches:
        """Match the crops of an evaluation protocol."""
        if search_radius is None:
            raise ValueError("not yet")
        raw = self.match_tensors(
            crops.sar, crops.optical, search_radius, (0, 0), crops.sar_valid, crops.optical_valid
        )
        return Matches(raw.xy_sar.cpu().numpy(), raw.xy_optical.cpu().numpy(), raw.confidence.cpu().numpy())

    def _prepare(self, image: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """A batch of one, padded to a multiple of 16, and its mask of cells (None where every cell is valid)."""
        height, width = image.shape[-2:]
        pad = (0, -width % MULTIPLE, 0, -height % MULTIPLE)
        mask = torch.ones(height, width, dtype=torch.bool) if valid is None else valid
        mask = F.pad(mask, pad)[None].to(self.device)
        padded = F.pad(image[None], pad, mode="replicate").to(self.device)
        return padded, None if bool(mask.all()) else cell_valid(mask)
