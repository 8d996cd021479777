"""Pixel convention, affine maps, grids and resampling.

Convention, used everywhere: coordinates are (x, y), the centre of the top-left pixel is (0, 0), images are
(B, C, H, W). A descriptor cell i of stride s has its centre at pixel s*i + (s-1)/2. An affine map is a 3x3 matrix
acting on column vectors (x, y, 1); `A_0to1` takes points of image 0 to image 1.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def cell_centres(height: int, width: int, stride: int, device: torch.device | str | None = None) -> Tensor:
    """Pixel coordinates (x, y) of the centres of a (height, width) grid of cells, (height, width, 2) float32."""
    y, x = (torch.arange(n, dtype=torch.float32, device=device) * stride + (stride - 1) / 2 for n in (height, width))
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([grid_x, grid_y], dim=-1)


def translation(x: float, y: float) -> Tensor:
    """Affine map that adds (x, y), (3, 3) float64."""
    return torch.tensor([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]], dtype=torch.float64)


def central_corner(size: tuple[int, int], side: int, name: str = "image") -> tuple[int, int]:
    """Top-left pixel (x, y) of the central window of `side` px in an image of (height, width); `name` is for errors."""
    height, width = size
    if min(size) < side:
        raise ValueError(
            f"{name} of {height} x {width} px is smaller than the {side} px crop; choose a smaller crop size"
        )
    return (width - side) // 2, (height - side) // 2


def rotation_scale(
    angle_deg: float, scale: float = 1.0, centre: tuple[float, float] = (0.0, 0.0), flip: bool = False
) -> Tensor:
    """Affine map that turns by `angle_deg` (x towards y), scales and optionally mirrors x, about `centre`; (3, 3)."""
    cos, sin = math.cos(math.radians(angle_deg)) * scale, math.sin(math.radians(angle_deg)) * scale
    mirror = -1.0 if flip else 1.0
    linear = torch.tensor([[cos * mirror, -sin, 0.0], [sin * mirror, cos, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    return translation(*centre) @ linear @ translation(-centre[0], -centre[1])


def transform_points(affine: Tensor, xy: Tensor) -> Tensor:
    """Apply (..., 3, 3) affine maps to points (..., N, 2) or one (3, 3) map to points of any leading shape."""
    a = affine.to(xy)
    if affine.ndim > 2:
        a = a[..., None, :, :]
    x, y = xy.unbind(-1)
    # Written out: a matrix product this thin wakes the threads of BLAS, which then stall those of the network.
    rows = [a[..., i, 0] * x + a[..., i, 1] * y + a[..., i, 2] for i in (0, 1)]
    return torch.stack(rows, -1)


def warp(image: Tensor, out_to_in: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """Resample an image so that output pixel p shows input position `out_to_in(p)`.

    Args:
        image: (C, H, W) or (B, C, H, W) float; zero outside.
        out_to_in: (3, 3), or (B, 3, 3) for a batch, in pixel coordinates.
        size: (height, width) of the result.
        mode: `bilinear`, `bicubic` or `nearest`.
    """
    batch = image if image.ndim == 4 else image[None]
    height, width = batch.shape[-2:]
    points = cell_centres(*size, stride=1, device=image.device).reshape(1, -1, 2)
    matrices = out_to_in if out_to_in.ndim == 3 else out_to_in[None]
    xy = transform_points(matrices.to(image.device, torch.float64), points.double())
    span = torch.tensor([width - 1, height - 1], dtype=torch.float64, device=image.device).clamp(min=1)
    grid = (2 * xy / span - 1).reshape(len(matrices), *size, 2).to(batch.dtype)
    out = F.grid_sample(batch, grid.expand(len(batch), -1, -1, -1), mode=mode, align_corners=True)
    return out if image.ndim == 4 else out[0]


def coverage(valid: Tensor, out_to_in: Tensor, size: tuple[int, int]) -> Tensor:
    """Where `warp` reads valid input only: (H, W) bool mask in, (size) bool mask out."""
    return warp(valid[None].float(), out_to_in, size)[0] > 0.999


def cell_valid(pixels: Tensor, stride: int) -> Tensor:
    """(B, H, W) bool pixels to (B, H / stride, W / stride) bool cells: a cell is valid where all its pixels are."""
    return F.avg_pool2d(pixels[:, None].float(), stride)[:, 0] > 0.999


def pixel_valid(cells: Tensor, stride: int) -> Tensor:
    """(B, h, w) bool cells to (B, h * stride, w * stride) bool pixels: each has what its cell has."""
    return cells.repeat_interleave(stride, -2).repeat_interleave(stride, -1)


def inside(xy: Tensor, size: tuple[int, int]) -> Tensor:
    """Whether points (..., 2) lie on an image of (height, width): between the outer pixel centres; (...) bool."""
    height, width = size
    x, y = xy[..., 0], xy[..., 1]
    return (x >= 0) & (y >= 0) & (x <= width - 1) & (y <= height - 1)


@dataclass(frozen=True)
class Search:
    """Where the counterpart of a SAR pixel may lie; a value out of range is a ValueError."""

    radius: float | None  # greatest distance from the same pixel position, px; None searches the whole image
    max_rotation_deg: float = 0.0  # of the optical image against the SAR image, in [0, 180]
    scale_range: tuple[float, float] = (1.0, 1.0)  # of the optical image against the SAR image

    def __post_init__(self) -> None:
        if self.radius is not None and not 0 < self.radius < math.inf:
            raise ValueError(f"search_radius must be positive, in px, or None for the whole image; got {self.radius}")
        if not 0 <= self.max_rotation_deg <= 180:
            raise ValueError(f"max_rotation_deg must lie in [0, 180], got {self.max_rotation_deg}")
        if not 0 < self.scale_range[0] <= self.scale_range[1]:
            raise ValueError(f"scale_range must satisfy 0 < low <= high, got {self.scale_range}")

    @property
    def turned(self) -> bool:
        """Whether more than a shift is searched."""
        return self.max_rotation_deg > 0 or tuple(self.scale_range) != (1.0, 1.0)

    @property
    def shift_radius(self) -> float | None:
        """The radius that confidences are calibrated for; None where more than a shift is searched."""
        return None if self.turned else self.radius
