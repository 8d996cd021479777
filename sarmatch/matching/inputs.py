"""What a matcher takes of images: one grid, one device, a batch of one."""

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from sarmatch.data.crops import EvaluationCrops
from sarmatch.data.raster import Raster
from sarmatch.geometry import Search, warp
from sarmatch.matching.tiling import MULTIPLE
from sarmatch.model import PairInput


def usable_device(name: str | torch.device) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # unknown name, or a build or machine without it
        raise ValueError(f"device {str(name)!r} cannot be used here ({error}); take 'auto' or 'cpu'") from error
    return device


def crop_rasters(crops: EvaluationCrops) -> tuple[Raster, Raster]:
    return Raster(crops.sar, crops.sar_valid, None, None), Raster(crops.optical, crops.optical_valid, None, None)


def crop_search(crops: EvaluationCrops, search_radius: float | None) -> Search:
    return dataclasses.replace(crops.search, radius=search_radius)


def batch_of_one(sar: Raster, optical: Raster, device: torch.device) -> PairInput:
    """Both images on one grid of the larger of their sides, multiples of 16, on the device."""
    height, width = (max(a, b) for a, b in zip(sar.valid.shape, optical.valid.shape, strict=True))
    size = (height + -height % MULTIPLE, width + -width % MULTIPLE)
    (sar_in, sar_valid), (optical_in, optical_valid) = (_pad(raster, size, device) for raster in (sar, optical))
    return sar_in, optical_in, sar_valid, optical_valid


def resampled(images: PairInput, prior: Tensor) -> PairInput:
    """The optical image as the map `prior` from SAR to optical pixels shows it on the SAR grid."""
    sar, optical, sar_valid, optical_valid = images
    size = (sar.shape[-2], sar.shape[-1])
    valid = warp(optical_valid[:, None].float(), prior, size)[:, 0] > 0.999
    return sar, warp(optical, prior, size), sar_valid, valid


def _pad(raster: Raster, size: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """A batch of one of the wanted size, its border repeated, and the mask of valid pixels (1, H, W)."""
    height, width = raster.valid.shape
    margin = (0, size[1] - width, 0, size[0] - height)
    image = F.pad(raster.image[None], margin, mode="replicate")
    return image.to(device), F.pad(raster.valid, margin)[None].to(device)
