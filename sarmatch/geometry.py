"""Pixel convention, affine maps, grids and resampling.

Convention, used everywhere: coordinates are (x, y), the centre of the top-left pixel is (0, 0), images are
(B, C, H, W). A descriptor cell i of stride s has its centre at pixel s*i + (s-1)/2. An affine map is a 3x3 matrix
acting on column vectors (x, y, 1); `A_0to1` takes points of image 0 to image 1.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
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


def warp(
    image: Tensor, out_to_in: Tensor, size: tuple[int, int], mode: str = "bilinear", field: Tensor | None = None
) -> Tensor:
    """Resample an image so that output pixel p shows input position `out_to_in(p + field(p))`.

    Args:
        image: (C, H, W) or (B, C, H, W) float; zero outside.
        out_to_in: (3, 3), or (B, 3, 3) for a batch, in pixel coordinates.
        size: (height, width) of the result.
        mode: `bilinear`, `bicubic` or `nearest`.
        field: (2, height, width) of the result, or (B, 2, height, width): displacement (dx, dy) of its pixels, px.
    """
    batch = image if image.ndim == 4 else image[None]
    height, width = batch.shape[-2:]
    points = cell_centres(*size, stride=1, device=image.device)
    points = (points if field is None else points + field.movedim(-3, -1)).reshape(-1, size[0] * size[1], 2)
    matrices = out_to_in if out_to_in.ndim == 3 else out_to_in[None]
    xy = transform_points(matrices.to(image.device, torch.float64), points.double())
    span = torch.tensor([width - 1, height - 1], dtype=torch.float64, device=image.device).clamp(min=1)
    grid = (2 * xy / span - 1).reshape(-1, *size, 2).to(batch.dtype)
    out = F.grid_sample(batch, grid.expand(len(batch), -1, -1, -1), mode=mode, align_corners=True)
    return out if image.ndim == 4 else out[0]


def coverage(valid: Tensor, out_to_in: Tensor, size: tuple[int, int], field: Tensor | None = None) -> Tensor:
    """Where `warp` reads valid input only: (H, W) bool mask in, (size) bool mask out."""
    return warp(valid[None].float(), out_to_in, size, field=field)[0] > 0.999


MAX_SLOPE = 0.9
"""Of a displacement field, px a px: above 1 an image folds and places have no unique counterpart."""


def smooth_field(size: tuple[int, int], largest_px: float, sigma_px: float, rng: np.random.Generator) -> Tensor:
    """A random displacement field: white noise, smoothed by a Gaussian, its largest component `largest_px`.

    `size` is (height, width), `sigma_px` the Gaussian's standard deviation; (2, height, width) float32, (dx, dy) in px.
    Where it would fold an image it is smaller: its slope stays below `MAX_SLOPE`.
    """
    # Made on nodes a quarter of sigma apart, which a smooth field needs no finer, with a rim of 3 sigma.
    step = max(1, round(sigma_px / 4))
    sigma, rim = sigma_px / step, math.ceil(3 * sigma_px / step)
    nodes = [math.ceil((n - 1) / step) + 1 for n in size]
    noise = rng.standard_normal((2, *(n + 2 * rim for n in nodes)))
    smooth = gaussian_filter(noise, (0, sigma, sigma), truncate=3.0)[:, rim:-rim, rim:-rim]
    full = F.interpolate(
        torch.from_numpy(smooth)[None], [(n - 1) * step + 1 for n in nodes], mode="bicubic", align_corners=True
    )[0, :, : size[0], : size[1]]
    slopes = torch.stack([full.diff(dim=axis)[:, : size[0] - 1, : size[1] - 1] for axis in (1, 2)])
    steepest = slopes.square().sum((0, 1)).sqrt().max()
    return (full * min(largest_px / full.abs().max(), MAX_SLOPE / steepest)).float()


def field_at(field: Tensor, xy: Tensor) -> Tensor:
    """Values (B, N, 2) of fields (B, 2, H, W) at points (B, N, 2) in px; beyond the border those at it."""
    span = torch.tensor([field.shape[-1] - 1, field.shape[-2] - 1], device=xy.device).clamp(min=1)
    grid = (2 * xy / span - 1)[:, :, None].to(field.dtype)
    return F.grid_sample(field, grid, padding_mode="border", align_corners=True)[..., 0].transpose(1, 2).to(xy)


@dataclass(frozen=True)
class TrueMap:
    """Where places of SAR crops lie in the optical crops, which may be bent.

    Pixel q of an optical crop shows the place p of the SAR crop for which A p = q + d(q).
    """

    affine: Tensor  #: A, (B, 3, 3), px.
    field: Tensor | None = None  #: d, (B, 2, H, W) (dx, dy) on the pixels of the optical crop, px; None is zero.

    INVERSION_STEPS = 40  # of a fixed point that is approached as the n-th power of the slope, mostly below 0.6

    def to_optical(self, xy: Tensor) -> Tensor:
        """Points (B, N, 2) of the SAR crops in the optical crops, px."""
        straight = transform_points(self.affine, xy)
        found = straight
        for _ in range(self.INVERSION_STEPS if self.field is not None else 0):
            found = straight - field_at(self.field, found)  # type: ignore[arg-type]
        return found

    def to_sar(self, xy: Tensor) -> Tensor:
        """Points (B, N, 2) of the optical crops in the SAR crops, px."""
        bent = xy if self.field is None else xy + field_at(self.field, xy)
        return transform_points(torch.linalg.inv(self.affine.to(xy)), bent)

    def nearest_affine(self, size: tuple[int, int]) -> Tensor:
        """The affine map (3, 3) nearest to this one of a single crop of (height, width), by least squares."""
        if self.field is None:
            return self.affine[0]
        points = cell_centres(size[0] // 4, size[1] // 4, 4).reshape(-1, 2).double()
        ones = torch.cat([points, torch.ones_like(points[:, :1])], 1)
        found = torch.linalg.lstsq(ones, self.to_optical(points[None])[0]).solution
        return torch.cat([found.T, torch.tensor([[0.0, 0.0, 1.0]], dtype=found.dtype)])


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
