"""Cost volumes: similarities of SAR cells and optical cells over displacements.

A volume V is (B, K, K, H, W): V[b, i, j, y, x] compares SAR cell (x, y) with optical cell (x + j - r, y + i - r), r =
(K - 1) / 2. Coarse volumes step by cells of 4 px, fine volumes by single pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MASKED = -1e4  #: Logit of an entry that cannot be: exp of it is zero in float32, bfloat16 and float16.
PIXEL_STEP = 2  #: Every second SAR pixel is compared, with optical pixels at every displacement: a quarter of the work.


class Volume(NamedTuple):
    """Similarities (B, K, K, H, W), zero where undefined, and where they are defined (same shape, or B = 1), bool."""

    values: Tensor
    valid: Tensor

    @property
    def radius(self) -> int:
        return (self.values.shape[1] - 1) // 2


def coarse_volume(
    sar: Tensor,
    optical: Tensor,
    radius: int,
    sar_valid: Tensor | None = None,
    optical_valid: Tensor | None = None,
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
    batch, _, height, width = sar.shape
    similarity = sar.flatten(2).transpose(1, 2) @ optical.flatten(2)  # (B, HW, H'W')
    index, _ = _window_index((height, width), (optical.shape[-2], optical.shape[-1]), radius, sar.device)
    values = similarity.gather(2, index.expand(batch, -1, -1))
    size = 2 * radius + 1
    return values.transpose(1, 2).reshape(batch, size, size, height, width)


def coarse_valid(
    sar: Tensor,
    optical: Tensor,
    radius: int,
    sar_valid: Tensor | None = None,
    optical_valid: Tensor | None = None,
) -> Tensor:
    """The mask of `coarse_volume`, (B, K, K, H, W) or with B = 1: it follows from sizes and masks alone."""
    (height, width), size = sar.shape[-2:], 2 * radius + 1
    index, valid = _window_index((height, width), (optical.shape[-2], optical.shape[-1]), radius, sar.device)
    valid = valid[None]
    if optical_valid is not None:
        valid = valid & optical_valid.flatten(1)[:, index]
    if sar_valid is not None:
        valid = valid & sar_valid.flatten(1)[:, :, None]
    return valid.transpose(1, 2).reshape(-1, size, size, height, width)


@lru_cache(maxsize=2)
def _window_index(
    size_sar: tuple[int, int], size_optical: tuple[int, int], radius: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Flat optical index of (SAR cell, displacement), (HW, K*K) long, and whether it lies on the grid.

    Cached, since training steps and Monte Carlo passes ask for the same; not to be written to.
    """
    with torch.inference_mode(False):  # what is cached may serve a training step next
        steps = torch.arange(-radius, radius + 1, device=device)
        y = torch.arange(size_sar[0], device=device)[:, None] + steps  # (H, K)
        x = torch.arange(size_sar[1], device=device)[:, None] + steps  # (W, K)
        on_y = (y >= 0) & (y < size_optical[0])
        on_x = (x >= 0) & (x < size_optical[1])
        y, x = y.clamp(0, size_optical[0] - 1), x.clamp(0, size_optical[1] - 1)
        index = y[:, None, :, None] * size_optical[1] + x[None, :, None, :]  # (H, W, K, K)
        valid = on_y[:, None, :, None] & on_x[None, :, None, :]
        n_cells = size_sar[0] * size_sar[1]
        return index.reshape(n_cells, -1), valid.reshape(n_cells, -1)


def displaced(optical_map: Tensor, size: tuple[int, int], radius: int) -> Tensor:
    """Values of a map (B, H', W') at the optical cell of every entry of a volume, (B, K, K, H, W).

    Off the optical grid the nearest cell is repeated; a volume's `valid` tells which entries are real.
    """
    batch, n_cells, steps = len(optical_map), size[0] * size[1], 2 * radius + 1
    index, _ = _window_index(size, (optical_map.shape[-2], optical_map.shape[-1]), radius, optical_map.device)
    rows = optical_map.flatten(1)[:, None].expand(-1, n_cells, -1)
    return rows.gather(2, index.expand(batch, -1, -1)).transpose(1, 2).reshape(batch, steps, steps, *size)


def fine_volume(sar: Tensor, optical: Tensor, offset: Tensor, radius: int, cell: int) -> Volume:
    """Mean similarity of each SAR cell's pixels with the optical pixels a whole-pixel displacement away.

    Args:
        sar, optical: L2-normalised full-resolution descriptors (B, C, H, W) of equal size.
        offset: (B, 2) long, the displacement (dx, dy) in px around which to look, one a pair.
        radius: half-width of the window in px.
        cell: side of a cell in px; the volume has (H / cell, W / cell) cells.
    """
    size, first = 2 * radius + 1, radius % PIXEL_STEP
    shifted, on_image = _shift(optical, offset, radius + first)
    every, phases = _phases(sar)[:, 0], _phases(shifted)
    corners = [(x + first, y + first) for y in range(size) for x in range(size)]
    products = _WindowProducts.apply(every, phases, corners)
    masks = torch.stack([_strided(on_image, every, corner) for corner in corners], 1)
    valid = F.avg_pool2d(masks, cell // PIXEL_STEP) > 0.999
    values = F.avg_pool2d(products, cell // PIXEL_STEP) * valid
    return Volume(values.unflatten(1, (size, size)), valid.unflatten(1, (size, size)))


def _shift(image: Tensor, offset: Tensor, margin: int) -> tuple[Tensor, Tensor]:
    """Crop (B, C, H, W) at a whole-pixel offset a pair, `margin` px wider on each side; zeros and a mask outside."""
    height, width = image.shape[-2:]
    pad = margin + int(offset.abs().max())
    padded = F.pad(image, (pad, pad, pad, pad))
    mask = F.pad(image.new_ones(1, height, width), (pad, pad, pad, pad))
    crops, masks = [], []
    for b, (x, y) in enumerate((pad - margin + offset).tolist()):
        window = (..., slice(y, y + height + 2 * margin), slice(x, x + width + 2 * margin))
        crops.append(padded[b][window])
        masks.append(mask[window])
    return torch.stack(crops), torch.cat(masks)


def _phases(image: Tensor) -> Tensor:
    """(B, C, H, W) to (B, PIXEL_STEP ** 2, C, H / PIXEL_STEP, W / PIXEL_STEP), one image a sub-grid.

    A window taken at every second pixel is then a contiguous slice of one phase, and several times faster.
    """
    unshuffled = F.pixel_unshuffle(image, PIXEL_STEP)
    return unshuffled.unflatten(1, (image.shape[1], PIXEL_STEP**2)).movedim(2, 1).contiguous()


def _window(every: Tensor, corner: tuple[int, int]) -> tuple[Any, ...]:
    """Index of the window at `corner` in phases, as large as the SAR image."""
    (x, y), (height, width) = corner, every.shape[-2:]
    phase = y % PIXEL_STEP * PIXEL_STEP + x % PIXEL_STEP
    rows, columns = y // PIXEL_STEP, x // PIXEL_STEP
    return (slice(None), phase, ..., slice(rows, rows + height), slice(columns, columns + width))


def _strided(mask: Tensor, every: Tensor, corner: tuple[int, int]) -> Tensor:
    """Every `PIXEL_STEP`-th pixel of the window at `corner` of a mask (B, H, W)."""
    (x, y), (height, width) = corner, every.shape[-2:]
    return mask[:, y : y + height * PIXEL_STEP : PIXEL_STEP, x : x + width * PIXEL_STEP : PIXEL_STEP]


class _WindowProducts(torch.autograd.Function):
    """Inner product over channels of an image with many windows of another's phases, (B, len(corners), H, W).

    The gradient is written by hand: autograd would fill a zero image for each window, half of a training step on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, every: Tensor, optical: Tensor, corners: Sequence[tuple[int, int]]) -> Tensor:
        ctx.save_for_backward(every, optical)
        ctx.corners = corners
        return torch.stack([(every * optical[_window(every, corner)]).sum(1) for corner in corners], 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        every, optical = ctx.saved_tensors
        to_every, to_optical = torch.zeros_like(every), torch.zeros_like(optical)
        for i, corner in enumerate(ctx.corners):
            window, weight = _window(every, corner), gradient[:, i, None]
            to_every.addcmul_(weight, optical[window])
            to_optical[window].addcmul_(weight, every)
        return to_every, to_optical, None


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
