"""Cost volumes: similarities of SAR cells and optical cells over displacements.

A volume V is (B, K, K, H, W): V[b, i, j, y, x] compares SAR cell (x, y) with optical cell (x + j - r, y + i - r), r =
(K - 1) / 2. Coarse volumes step by cells of 4 px, fine volumes by single pixels.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MASKED = -1e4  #: Logit of an entry that cannot be: exp of it is zero in float32, bfloat16 and float16.
PIXEL_STEP = 2  #: Every second SAR pixel is compared, with optical pixels at every displacement: a quarter of the work.
COARSE_TILE, FINE_TILE = 8, 4  #: Sides, in cells, of the tiles whose volumes are matrix products; the fastest on a CPU.


class Volume(NamedTuple):
    """Similarities (B, K, K, H, W), zero where undefined, and where they are defined (same shape, or B = 1), bool."""

    values: Tensor
    valid: Tensor

    @property
    def radius(self) -> int:
        return (self.values.shape[1] - 1) // 2


def coarse_volume(
    sar: Tensor, optical: Tensor, radius: int, sar_valid: Tensor | None = None, optical_valid: Tensor | None = None
) -> Volume:
    """Cosine of every SAR cell with the optical cells around its predicted place.

    Args:
        sar, optical: L2-normalised descriptors (B, C, H, W) and (B, C, H', W').
        radius: half-width of the window in cells.
        sar_valid, optical_valid: (B, H, W) and (B, H', W') bool, cells that carry data; None takes all.
    """
    valid = coarse_valid(sar, optical, radius, sar_valid, optical_valid)
    return Volume(coarse_similarity(sar, optical, radius) * valid, valid)


def coarse_similarity(sar: Tensor, optical: Tensor, radius: int) -> Tensor:
    """The values of `coarse_volume`, (B, K, K, H, W), not yet zero where they are not valid."""
    (height, width), side = sar.shape[-2:], COARSE_TILE + 2 * radius
    down, across = -height % COARSE_TILE, -width % COARSE_TILE
    size = (height + down, width + across)
    cells = _tiles(F.pad(sar, (0, across, 0, down)), COARSE_TILE, COARSE_TILE)
    around = _tiles(F.pad(optical, _margin(size, optical.shape, radius)), side, COARSE_TILE)
    values = _window_sums(cells, around, 1, 2 * radius + 1, 1)
    return _assembled(values, size)[..., :height, :width]


def coarse_valid(
    sar: Tensor, optical: Tensor, radius: int, sar_valid: Tensor | None = None, optical_valid: Tensor | None = None
) -> Tensor:
    """The mask of `coarse_volume`, (B, K, K, H, W) or with B = 1: it follows from sizes and masks alone."""
    if optical_valid is None:
        optical_valid = torch.ones(1, *optical.shape[-2:], dtype=torch.bool, device=optical.device)
    valid = displaced(optical_valid, (sar.shape[-2], sar.shape[-1]), radius)
    return valid if sar_valid is None else valid & sar_valid[:, None, None]


def displaced(optical_map: Tensor, size: tuple[int, int], radius: int) -> Tensor:
    """Values of a map (B, H', W') at the optical cell of every entry of a volume, a view (B, K, K, H, W).

    Zero off the optical grid; a volume's `valid` tells which entries are real.
    """
    padded = F.pad(optical_map, _margin(size, optical_map.shape, radius))
    return padded.unfold(1, size[0], 1).unfold(2, size[1], 1)


def _margin(size: Sequence[int], optical: Sequence[int], radius: int) -> tuple[int, int, int, int]:
    """What a map of the optical size lacks to reach `radius` cells beyond a SAR grid of (height, width)."""
    return radius, size[1] + radius - optical[-1], radius, size[0] + radius - optical[-2]


def fine_volume(sar: Tensor, optical: Tensor, offset: Tensor, radius: int, cell: int) -> Volume:
    """Mean similarity of each SAR cell's pixels with the optical pixels a whole-pixel displacement away.

    Args:
        sar, optical: L2-normalised full-resolution descriptors (B, C, H, W) of equal size, in cells multiples of 4.
        offset: (B, 2) long, the displacement (dx, dy) in px around which to look, one a pair.
        radius: half-width of the window in px.
        cell: side of a cell in px; the volume has (H / cell, W / cell) cells.
    """
    (height, width), size, tile = sar.shape[-2:], 2 * radius + 1, FINE_TILE * cell
    compared = _tiles(sar[..., ::PIXEL_STEP, ::PIXEL_STEP], tile // PIXEL_STEP, tile // PIXEL_STEP)
    around = _tiles(_Shift.apply(optical, offset, radius), tile - PIXEL_STEP + size, tile)
    sums = _window_sums(compared, around, cell // PIXEL_STEP, size, PIXEL_STEP)
    steps = torch.arange(-radius, radius + 1, device=sar.device)
    on = []
    for axis, length in ((1, height), (0, width)):
        first = torch.arange(0, length, cell, device=sar.device) + (offset[:, axis, None] + steps)[..., None]
        on.append((first >= 0) & (first + cell - PIXEL_STEP < length))  # (B, K, cells)
    valid = on[0][:, :, None, :, None] & on[1][:, None, :, None, :]
    return Volume(_assembled(sums, (height // cell, width // cell)) * valid / (cell // PIXEL_STEP) ** 2, valid)


def _tiles(image: Tensor, side: int, step: int) -> Tensor:
    """Windows of (B, C, H, W) every `step` along both axes, row by row, (B * windows, C, side * side)."""
    windows = image.unfold(2, side, step).unfold(3, side, step)
    return windows.permute(0, 2, 3, 1, 4, 5).reshape(-1, image.shape[1], side**2)


def _assembled(tiles: Tensor, size: Sequence[int]) -> Tensor:
    """Volumes of tiles (B * tiles, K, K, t, t) put together, (B, K, K, *size)."""
    steps, tile = tiles.shape[1], tiles.shape[-1]
    grid = tiles.view(-1, size[0] // tile, size[1] // tile, steps, steps, tile, tile)
    return grid.permute(0, 3, 4, 1, 5, 2, 6).reshape(-1, steps, steps, *size)


def _window_sums(points: Tensor, around: Tensor, block: int, size: int, step: int) -> Tensor:
    """Inner products of the points of a tile with what lies around them, summed over blocks of points.

    Args:
        points: (N, C, p * p), a tile of p x p points.
        around: (N, C, s * s), the window that the points reach, s = step (p - 1) + size.
        block: side of the square of points that are summed; their cells are p / block a side.
        size: displacements along each axis, K.
        step: entries of the window between two points.

    Returns:
        (N, K, K, p / block, p / block).
    """
    side, window = math.isqrt(points.shape[-1]), math.isqrt(around.shape[-1])
    cells, entry = side // block, window**2
    shape = (len(points), size, size, cells, cells)
    # Moving on by a point moves its window too: all displacements are a slanted view of the product.
    right, down = entry + step, side * entry + step * window
    strides = (side**2 * entry, window, 1, block * down, block * right)
    offsets = [i * down + j * right for i in range(block) for j in range(block)]
    return _SlantedProduct.apply(points, around, shape, strides, offsets)


class _SlantedProduct(torch.autograd.Function):
    """Sum of strided views of the product of (N, C, P) and (N, C, Q) over C, (N, P, Q).

    The gradient is written by hand: autograd would fill a product of zeros for each view.
    """

    @staticmethod
    def forward(
        ctx: Any, left: Tensor, right: Tensor, shape: Sequence[int], strides: Sequence[int], offsets: Sequence[int]
    ) -> Tensor:
        ctx.save_for_backward(left, right)
        ctx.views = shape, strides, offsets
        product = torch.bmm(left.mT, right)
        total = product.as_strided(shape, strides, offsets[0]).clone(memory_format=torch.contiguous_format)
        for offset in offsets[1:]:
            total += product.as_strided(shape, strides, offset)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        left, right = ctx.saved_tensors
        shape, strides, offsets = ctx.views
        of_product = gradient.new_zeros(len(left), left.shape[-1], right.shape[-1])
        for offset in offsets:
            of_product.as_strided(shape, strides, offset).copy_(gradient)
        return torch.bmm(right, of_product.mT), torch.bmm(left, of_product), None, None, None


class _Shift(torch.autograd.Function):
    """(B, C, H, W) at a whole-pixel offset (B, 2) a pair, `margin` px wider on each side; zero outside.

    The gradient of a shift is the shift back; that of indexing adds up element by element.
    """

    @staticmethod
    def forward(ctx: Any, image: Tensor, offset: Tensor, margin: int) -> Tensor:
        ctx.save_for_backward(offset)
        ctx.margin, ctx.size = margin, image.shape[-2:]
        height, width = image.shape[-2:]
        return _cut(image, offset - margin, (height + 2 * margin, width + 2 * margin))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (offset,) = ctx.saved_tensors
        return _cut(gradient, ctx.margin - offset, ctx.size), None, None


def _cut(image: Tensor, corner: Tensor, size: tuple[int, int]) -> Tensor:
    """Windows of (B, C, H, W) with their top-left pixels (x, y) at `corner` (B, 2), which may lie outside: zero."""
    on, at = [], []
    for axis, length, extent in ((1, image.shape[-2], size[0]), (0, image.shape[-1], size[1])):
        place = corner[:, axis, None] + torch.arange(extent, device=image.device)
        on.append((place >= 0) & (place < length))
        at.append(place.clamp(0, length - 1))
    index = (at[0][:, :, None] * image.shape[-1] + at[1][:, None]).flatten(1)
    window = image.flatten(2).gather(2, index[:, None].expand(-1, image.shape[1], -1)).unflatten(2, size)
    return window * (on[0][:, None, :, None] & on[1][:, None, None])


def swap(volume: Volume) -> Volume:
    """The same volume indexed by optical cells: entry (delta, q) is the input's (delta, q - delta).

    Only for images of equal size. Entries whose SAR cell lies off the grid become invalid.
    """
    return Volume(_by_optical_cell(volume.values, 0.0), _by_optical_cell(volume.valid, False))


def _by_optical_cell(entries: Tensor, outside: float) -> Tensor:
    """Entry (delta, q) is the input's (delta, q - delta), `outside` off the grid: a slanted view of the padded input.

    With the image as wide as the padding makes it, one step of displacement is one pixel less to go; no index of all
    entries is needed, which on a CPU is several times faster.
    """
    radius = (entries.shape[1] - 1) // 2
    padded = F.pad(entries, (radius, radius, radius, radius), value=outside)
    batch, down, across, row, column = padded.stride()
    strides = (batch, down - row, across - column, row, column)
    return padded.as_strided(entries.shape, strides, padded.storage_offset() + 2 * radius * (row + column))


def disc(radius: int, length: float, device: torch.device | str | None = None) -> Tensor:
    """(K, K) bool: displacements whose length is at most `length` (in the volume's steps)."""
    steps = torch.arange(-radius, radius + 1, device=device, dtype=torch.float32)
    return steps[:, None] ** 2 + steps[None, :] ** 2 <= length**2


def cell_grid(height: int, width: int, device: torch.device | str | None = None) -> Tensor:
    """The cells (x, y) of a grid, (height, width, 2) long."""
    y, x = torch.meshgrid(*(torch.arange(n, device=device) for n in (height, width)), indexing="ij")
    return torch.stack([x, y], -1)


def optical_cells(cells: Tensor, displacement: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The optical cells that displacements lead to.

    Args:
        cells, displacement: (..., 2) long (x, y), in cells.
        size: (height, width) of the optical grid, in cells.

    Returns:
        flat index (...) long, of the nearest cell where the displacement leads off the grid; whether it stays on it,
        (...) bool.
    """
    height, width = size
    to = cells + displacement
    nearest = to.clamp(min=0).minimum(torch.tensor([width - 1, height - 1], device=to.device))
    return nearest[..., 1] * width + nearest[..., 0], (nearest == to).all(-1)
