"""Similarity volumes over displacements, local consensus, and their arg-max.

A volume V is (B, K, K, H, W): V[b, i, j, y, x] compares SAR cell (x, y) with optical cell (x + j - r, y + i - r), r =
(K - 1) / 2. Coarse volumes step by cells of 4 px, fine volumes by single pixels; everything below serves both. Entries
that have no optical cell are zero and marked in `valid` (B, K, K, H, W) bool.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MASKED = -1e4
"""Logit of an entry that cannot be: exp of it is zero in float32, bfloat16 and float16."""


class Volume(NamedTuple):
    """Similarities (B, K, K, H, W) and where they are defined (same shape, or with B = 1), bool."""

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
        sar_valid, optical_valid: (B, H, W) and (B, H', W') bool, cells that carry data; None takes all.
        radius: half-width of the window in cells.
    """
    sizes = [(image.shape[-2], image.shape[-1]) for image in (sar, optical)]
    valid = coarse_valid(sizes[0], sizes[1], radius, sar.device, sar_valid, optical_valid)
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
    size_sar: tuple[int, int],
    size_optical: tuple[int, int],
    radius: int,
    device: torch.device,
    sar_valid: Tensor | None = None,
    optical_valid: Tensor | None = None,
) -> Tensor:
    """The mask of `coarse_volume`, (B, K, K, H, W) or with B = 1: it follows from sizes and masks alone."""
    index, valid = _window_index(size_sar, size_optical, radius, device)
    valid = valid[None]
    if optical_valid is not None:
        valid = valid & optical_valid.flatten(1)[:, index]
    if sar_valid is not None:
        valid = valid & sar_valid.flatten(1)[:, :, None]
    size = 2 * radius + 1
    return valid.transpose(1, 2).reshape(-1, size, size, *size_sar)


@lru_cache(maxsize=2)
def _window_index(
    size_sar: tuple[int, int], size_optical: tuple[int, int], radius: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Flat optical index of (SAR cell, displacement), (HW, K*K) long, and whether it lies on the grid.

    Kept for the next call, since training steps and Monte Carlo passes ask for the same; so not to be written to.
    """
    with torch.inference_mode(False):  # what is kept may serve a training step next
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


def fine_volume(sar: Tensor, optical: Tensor, offset: Tensor, radius: int, cell: int) -> Volume:
    """Mean similarity of each SAR cell's pixels with the optical pixels a whole-pixel displacement away.

    Args:
        sar, optical: L2-normalised full-resolution descriptors (B, C, H, W) of equal size.
        offset: (B, 2) long, the displacement (dx, dy) in px around which to look, one a pair.
        radius: half-width of the window in px.
        cell: side of a cell in px; the volume has (H / cell, W / cell) cells.
    """
    shifted, on_image = _shift(optical, offset, radius + radius % PIXEL_STEP)
    size = 2 * radius + 1
    first = radius % PIXEL_STEP
    corners = [(x + first, y + first) for y in range(size) for x in range(size)]
    return _cell_means(_phases(sar)[:, 0], _phases(shifted), on_image, corners, cell)


def displaced(optical_map: Tensor, size: tuple[int, int], radius: int) -> Tensor:
    """A map on the optical cells (B, H', W'), as seen from SAR cells at every displacement, (B, K, K, H, W).

    Off the optical grid the nearest cell is repeated; a volume's `valid` tells which entries are real.
    """
    batch, n_cells, steps = len(optical_map), size[0] * size[1], 2 * radius + 1
    index, _ = _window_index(size, (optical_map.shape[-2], optical_map.shape[-1]), radius, optical_map.device)
    rows = optical_map.flatten(1)[:, None].expand(-1, n_cells, -1)
    return rows.gather(2, index.expand(batch, -1, -1)).transpose(1, 2).reshape(batch, steps, steps, *size)


PIXEL_STEP = 2
"""Every second SAR pixel is compared, with optical pixels at every displacement: a quarter of the work."""


def _cell_means(
    every: Tensor, optical: Tensor, on_image: Tensor, corners: Sequence[tuple[int, int]], cell: int
) -> Volume:
    """Mean of products over each cell, with the optical windows that begin at `corners`, a square number of them.

    Args:
        every: SAR pixels at every step, (B, C, H, W).
        optical: phases of the optical image, (B, PIXEL_STEP ** 2, C, H', W').
        on_image: (B, H' * PIXEL_STEP, W' * PIXEL_STEP) float, 1 on the image.
    """
    size = round(len(corners) ** 0.5)
    side = cell // PIXEL_STEP
    products = _WindowProducts.apply(every, optical, corners)
    masks = torch.stack([_strided(on_image, every, corner) for corner in corners], 1)
    valid = F.avg_pool2d(masks, side) > 0.999
    values = F.avg_pool2d(products, side) * valid
    return Volume(values.unflatten(1, (size, size)), valid.unflatten(1, (size, size)))


def _phases(image: Tensor) -> Tensor:
    """(B, C, H, W) to (B, PIXEL_STEP ** 2, C, H / PIXEL_STEP, W / PIXEL_STEP), one image a sub-grid.

    A window taken at every second pixel is then a plain slice of one phase: contiguous, and several times faster.
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

    The gradient is written by hand because autograd would fill a zero image for each of the windows: half of a
    training step on a CPU.
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


def consensus(volume: Volume, sides: Sequence[int], reliability: Tensor | None = None) -> list[Volume]:
    """Local consensus: replace each similarity by the mean over the neighbourhood at the same displacement.

    sum over p' in N(p) of w(p', delta) V(p', delta) / sum of w(p', delta). Only valid entries count, so a cell
    at the border has the mean of the neighbours that have an optical cell.

    Args:
        sides: odd sides of the neighbourhoods in cells.
        reliability: weights w, broadcastable to the volume, >= 0; None weighs all alike.

    Returns:
        one volume a side, valid wherever at least one neighbour counts.
    """
    weights = volume.valid.to(volume.values) if reliability is None else volume.valid * reliability
    weighted = volume.values * weights
    result = []
    for side in sides:
        total = box_sums(weights, side)
        valid = total > NO_WEIGHT
        result.append(Volume(box_sums(weighted, side) / total.clamp(min=NO_WEIGHT) * valid, valid))
    return result


NO_WEIGHT = 1e-12
"""Sum of weights taken as none; far below any weight, so that uncertainty alone makes no cell invalid."""


def box_sums(x: Tensor, side: int) -> Tensor:
    """Sums over side x side windows of the last two axes, cut off at the border.

    As products with banded matrices: on grids of some dozen cells that is faster than pooling or integral images, and
    exact where those cancel.
    """
    rows, columns = (band(n, side, x) for n in x.shape[-2:])
    return rows @ (x @ columns)


def band(n: int, side: int, like: Tensor) -> Tensor:
    """(n, n) matrix of ones within side // 2 of the diagonal."""
    steps = torch.arange(n, device=like.device)
    return ((steps[:, None] - steps[None, :]).abs() <= side // 2).to(like)


def combine(volumes: Sequence[Volume], scales: Tensor) -> Volume:
    """Logits as the sum of volumes times their scales: a product of experts, one a neighbourhood.

    Valid where the widest neighbourhood is; a narrower one that saw nothing there adds nothing.
    """
    logits = sum(scale * volume.values for scale, volume in zip(scales, volumes, strict=True))
    assert isinstance(logits, Tensor)
    return Volume(logits, volumes[-1].valid)


def swap(volume: Volume) -> Volume:
    """The same volume seen from the optical cells: entry (delta, q) is the input's (delta, q - delta).

    Only for images of equal size. Entries whose SAR cell lies off the grid become invalid.
    """
    return Volume(_from_the_other_end(volume.values, 0.0), _from_the_other_end(volume.valid, False))


def _from_the_other_end(entries: Tensor, outside: float) -> Tensor:
    """Entry (delta, q) is the input's (delta, q - delta), `outside` off the grid: a slanted view of the padded input.

    With the image as wide as the padding makes it, one step of displacement is one pixel less to go; no index of all
    entries is needed, which on a CPU is several times faster.
    """
    radius = (entries.shape[1] - 1) // 2
    padded = F.pad(entries, (radius, radius, radius, radius), value=outside)
    batch, down, across, row, column = padded.stride()
    strides = (batch, down - row, across - column, row, column)
    return padded.as_strided(entries.shape, strides, padded.storage_offset() + 2 * radius * (row + column))


def log_softmax(volume: Volume, within: Tensor | None = None) -> Tensor:
    """Log-probability of each displacement of a cell, (B, K*K, H, W); invalid entries get no mass.

    Args:
        within: (K, K) bool, the displacements that are candidates at all.
    """
    valid = volume.valid if within is None else volume.valid & within[:, :, None, None]
    return volume.values.masked_fill(~valid, MASKED).flatten(1, 2).log_softmax(1)


def disc(radius: int, reach: float, device: torch.device | str | None = None) -> Tensor:
    """(K, K) bool: displacements whose length is at most `reach` (in the volume's steps)."""
    steps = torch.arange(-radius, radius + 1, device=device, dtype=torch.float32)
    return steps[:, None] ** 2 + steps[None, :] ** 2 <= reach**2


def best(log_probability: Tensor) -> tuple[Tensor, Tensor]:
    """Arg-max displacement of each cell: (B, H, W, 2) long (dx, dy) in steps, and its log-probability (B, H, W)."""
    value, index = log_probability.max(1)
    size = round(log_probability.shape[1] ** 0.5)
    radius = (size - 1) // 2
    return torch.stack([index % size - radius, index // size - radius], dim=-1), value


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
        flat index (...) long of the cell, the nearest one where the displacement leads off the grid, and whether it
        stays on it, (...) bool.
    """
    height, width = size
    to = cells + displacement
    nearest = to.clamp(min=0).minimum(torch.tensor([width - 1, height - 1], device=to.device))
    return nearest[..., 1] * width + nearest[..., 0], (nearest == to).all(-1)
