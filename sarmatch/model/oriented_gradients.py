"""Channel features of oriented gradients (CFOG: Ye et al. 2019, doi 10.1109/TGRS.2019.2924684) and their correlation.

The orientation of an edge survives the change of sensor where its brightness does not.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from sarmatch.config import N_ORIENTATIONS

SAR_SIGMA_PX, OPTICAL_SIGMA_PX = 1.5, 1.0  # smoothing before differentiation; SAR needs more because of speckle
BORDER_PX = 4
"""Extent of most of the smoothing: channels closer to the edge of the image mean little."""


@torch.no_grad()
def orientation_channels(images: Tensor, sigma_px: float) -> Tensor:
    """Orientation channels of images (B, C, H, W): vectors of length at most 1 and mean 0, (B, 9, H, W) float32.

    The magnitudes of the gradient along nine orientations over 180 degrees (mean over bands) are smoothed in space
    and across orientations, and their mean is removed. `sigma_px` is that of the smoothing before differentiation.
    """
    kind = images.device.type
    # Eight bits of bfloat16 are too few for differences of smoothed pixels; the meta device knows no autocast.
    exact = torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
    with exact:
        smooth = gaussian_blur(images.float(), sigma_px)
        along_x = F.pad(smooth[..., 2:] - smooth[..., :-2], (1, 1, 0, 0))
        along_y = F.pad(smooth[..., 2:, :] - smooth[..., :-2, :], (0, 0, 1, 1))
        angles = [math.pi * i / N_ORIENTATIONS for i in range(N_ORIENTATIONS)]
        along = [(along_x * math.cos(a) + along_y * math.sin(a)).abs().mean(dim=1) for a in angles]
        channels = gaussian_blur(torch.stack(along, dim=1), 1.5)
        channels = (channels.roll(1, dims=1) + 2 * channels + channels.roll(-1, dims=1)) / 4
        strength = _length(channels).mean(dim=(-2, -1), keepdim=True)
        # With their mean all vectors would point the same way, and correlation would hardly tell right from wrong.
        channels = channels - channels.mean(dim=1, keepdim=True)
        # Gradients much weaker than half the image's mean carry little orientation.
        return channels / (_length(channels) + 0.5 * strength).clamp(min=1e-12)


def _length(channels: Tensor) -> Tensor:
    """(B, C, H, W) to (B, 1, H, W); on a CPU `norm` over this axis takes 25 times as long."""
    return channels.square().sum(1, keepdim=True).sqrt()


def eroded(valid: Tensor, distance: int = BORDER_PX) -> Tensor:
    """Pixels further than `distance` px along both axes from the border and any invalid pixel, (H, W) or (B, H, W)."""
    invalid, side = F.pad((~valid).float()[None], (distance,) * 4, value=1.0), 2 * distance + 1
    return F.max_pool2d(F.max_pool2d(invalid, (side, 1), stride=1), (1, side), stride=1)[0] == 0


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian smoothing of (..., H, W), edges replicated."""
    radius = math.ceil(3 * sigma)
    x = torch.arange(-radius, radius + 1, dtype=image.dtype, device=image.device)
    kernel = torch.exp(-(x**2) / (2 * sigma**2))
    bands = image.flatten(0, -3)[None]  # as channels of one image: as images of one channel they take six times as long
    n = bands.shape[1]
    row = (kernel / kernel.sum()).expand(n, 1, 1, -1).contiguous()
    out = F.conv2d(F.pad(bands, (radius, radius, 0, 0), mode="replicate"), row, groups=n)
    out = F.conv2d(F.pad(out, (0, 0, radius, radius), mode="replicate"), row.transpose(-1, -2).contiguous(), groups=n)
    return out.view(image.shape)


def correlation_surface(a: Tensor, b: Tensor, size: Sequence[int]) -> Tensor:
    """Cross-correlation at every shift: the sum over channels and p of a(p) b(p + shift).

    From (..., C, H, W) to (..., *size), shift (dy, dx) at row dy and column dx modulo `size`, whose excess over the
    images' sides are the shifts free of wrap-around.
    """
    spectrum = (torch.fft.rfft2(a, s=size).conj() * torch.fft.rfft2(b, s=size)).sum(-3)
    return torch.fft.irfft2(spectrum, s=size)
