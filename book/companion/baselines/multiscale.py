"""Displacement regressed scale by scale (Zampieri et al. 2018, ref. 29)."""

import torch
import torch.nn.functional as F
from timm.layers import ConvNormAct
from torch import Tensor, nn

from companion.baselines.base import as_matches
from companion.baselines.learned import PeerNet, PeerSize
from sarmatch.data.crops import Sample
from sarmatch.geometry import TrueMap, cell_centres, inside
from sarmatch.matching.matches import Matches
from sarmatch.model.layers import norm_layer

SCALES = (8, 4, 2)  # pixels a cell of each link of the chain, the coarsest first


class Link(nn.Module):
    """From both images at one scale to the displacement that is still missing, in cells of that scale."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        norm = norm_layer("group")
        layers = [ConvNormAct(channels, width, 3, norm_layer=norm)]
        layers += [ConvNormAct(width, width, 3, dilation=d, norm_layer=norm) for d in (1, 2, 4, 1)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 2, 3, padding=1))

    def forward(self, sar: Tensor, optical: Tensor) -> Tensor:
        displacement: Tensor = self.layers(torch.cat([sar, optical], dim=1))
        return displacement


class MultiscaleNet(PeerNet):
    """A chain of networks: each takes both images, the optical one moved by what is known, and corrects that.

    Adapted: three links, at 8, 4 and 2 px a cell, trained together, each from what the coarser ones left and without a
    gradient to them; the shift is of many cells. Every cell of 4 px has an answer. The original has no confidence, ours
    is exp(-r) with the length r of the last correction in px.
    """

    def __init__(self, config: PeerSize) -> None:
        super().__init__(config)
        channels = config.sar_channels + config.optical_channels
        self.links = nn.ModuleList(Link(channels, config.width) for _ in SCALES)

    def chain(self, sar: Tensor, optical: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Of each scale, displacements (B, 2, H/s, W/s) in px as (dx, dy), and the last correction."""
        result: list[tuple[Tensor, Tensor]] = []
        size = sar.shape[-2:]
        known = sar.new_zeros(len(sar), 2, size[0] // SCALES[0], size[1] // SCALES[0])
        for link, scale in zip(self.links, SCALES, strict=True):
            small = [F.avg_pool2d(image, scale) for image in (sar, optical)]
            known = F.interpolate(known.detach(), small[0].shape[-2:], mode="bilinear")
            correction = scale * link(small[0], moved(small[1], known / scale)).float()  # bfloat16 is too coarse
            known = known + correction
            result.append((known, correction))
        return result

    def describe(self, sar: Tensor, optical: Tensor) -> tuple[Tensor, ...]:
        """Displacements of each scale, as `chain`."""
        return tuple(found for found, _ in self.chain(sar, optical))

    def losses(self, batch: Sample, *described: Tensor) -> dict[str, Tensor]:
        losses = {}
        size = batch["sar"].shape[-2:]
        truth = TrueMap(batch["A_sar_to_optical"].float(), batch["field"])
        for found, scale in zip(described, SCALES, strict=True):
            grid = cell_centres(found.shape[2], found.shape[3], scale, found.device)
            there = truth.to_optical(grid.reshape(1, -1, 2)).reshape(-1, *grid.shape)
            mask = inside(there, (size[0], size[1]))
            error = (found.movedim(1, 3) + grid - there).norm(dim=-1)
            losses[f"error_{scale}"] = (error * mask).sum() / mask.sum().clamp(min=1)
        return {"loss": torch.stack(list(losses.values())).mean(), **losses}

    def find(self, sar: Tensor, optical: Tensor, limit: float) -> Matches:
        height, width = (a - b for a, b in zip(sar.shape[-2:], optical.shape[-2:], strict=True))
        optical = F.pad(optical, (0, width, 0, height))  # cut or filled with zeros to the size of the SAR image
        found, correction = (F.avg_pool2d(x, 2)[0].flatten(1).T for x in self.chain(sar, optical)[-1])
        xy_sar = self.centres(sar)
        keep = found.norm(dim=1) <= limit
        confidence = (-correction.norm(dim=1)).exp()
        return as_matches(*(x[keep] for x in (xy_sar, xy_sar + found, confidence)))


def moved(image: Tensor, displacement: Tensor) -> Tensor:
    """The image (B, C, h, w) at p + displacement(p), (B, 2, h, w) in its pixels; 0 outside."""
    height, width = image.shape[-2:]
    there = cell_centres(height, width, 1, image.device) + displacement.movedim(1, 3)
    span = torch.tensor([width - 1, height - 1], device=image.device).clamp(min=1)
    return F.grid_sample(image, 2 * there / span - 1, align_corners=True)
