"""Template matching on oriented-gradient channels: the strongest method for co-oriented pairs without any learning."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from companion.baselines.base import Baseline, on_image
from companion.baselines.gradients import Features, oriented_gradients, parabola_peak, shift_scores
from sarmatch.geometry import cell_centres
from sarmatch.matching.aggregation import box_sums
from sarmatch.matching.matches import Matches
from sarmatch.model import STRIDE
from sarmatch.model.oriented_gradients import OPTICAL_SIGMA_PX, SAR_SIGMA_PX

_PIXEL_STEP = 2  # channels are smoothed over more than 2 px: every second SAR pixel suffices at a quarter the cost
_UNKNOWN_RADIUS = 32  # px searched around the shift of the whole image where no radius is given
_PEAK_HALF_WIDTH = 4  # px around a maximum that belong to its peak
_MAX_ENTRIES = 12_000_000  # of a score volume held at a time; larger images are worked off in strips


@dataclass(frozen=True)
class TemplateMatcher(Baseline):
    """Templates around a grid of SAR keypoints, searched in the optical image; rotation and scale are not searched.

    Features of CFOG (Ye et al. 2019) less their mean over orientations, by normalised correlation. Template matching by
    another similarity is a subclass with `_features` and `_similarities` of its own.
    """

    template_px: int = 65  #: Side of the square template, px; taken as an odd number of 4 px cells.
    mutual: bool = True  #: Keep a match only where no other template fits its place in the optical image better.
    min_template: float = 0.3  #: Least share of a template on the optical image at which a displacement counts.

    def match(self, sar: Tensor, optical: Tensor, search_radius: float | None = None) -> Matches:
        """One match for each keypoint of the stride-4 grid, unless `mutual` drops it.

        Without a search radius, 32 px around the shift at which the whole images correlate best are searched. The
        confidence is how far the best score stands above the best one elsewhere, as a share of it.
        """
        offset = (0, 0) if search_radius is not None else _whole_image_shift(*_gradients(sar, optical))
        a, b = self._features(sar, optical)
        limit = float(_UNKNOWN_RADIUS if search_radius is None else search_radius)
        peaks, is_best = self._search(a, _framed(b, a.size, offset, math.floor(limit)), limit)
        cells = cell_centres(peaks.score.shape[0], peaks.score.shape[1], STRIDE).numpy()
        xy_optical = cells + (peaks.displacement + peaks.refinement).numpy() + np.array(offset)
        keep = on_image(xy_optical, optical) & (peaks.score > 0).numpy()
        if self.mutual:
            keep &= is_best.numpy()
        return Matches(cells[keep], xy_optical[keep], peaks.confidence.numpy()[keep])

    def _features(self, sar: Tensor, optical: Tensor) -> tuple[Features, Features]:
        """What is compared of both images."""
        return _gradients(sar, optical)

    def _similarities(self, a: Features, window: Features, radius: int, side: int) -> Tensor:
        """Similarity of the template of `side` cells around every cell, (K, K, h, w) for displacements (dy, dx).

        Here it is the normalised correlation. K = 2 radius + 1; `window` is the part of the optical image around `a`,
        `radius` px wider on all sides.
        """
        height, width = (n * STRIDE for n in grid_size(a))
        size = (2 * radius + 1, 2 * radius + 1, height // STRIDE, width // STRIDE)
        every = a.channels[:, :height:_PIXEL_STEP, :width:_PIXEL_STEP].contiguous()
        products = every.new_zeros(size)
        for dy, dx in np.ndindex(size[:2]):
            if math.hypot(dy - radius, dx - radius) < radius + 1:
                part = window.channels[:, dy : dy + height : _PIXEL_STEP, dx : dx + width : _PIXEL_STEP]
                products[dy, dx] = F.avg_pool2d((every * part).sum(dim=0)[None], STRIDE // _PIXEL_STEP)[0] * STRIDE**2
        sums = box_sums(products, side)
        rows, columns = _spans(a, window, radius, side)
        energy_a = _rectangle_sums(a.channels.square().sum(dim=0), rows.first, rows.last, columns.first, columns.last)
        steps = torch.arange(size[0])[:, None]
        energy_b = _rectangle_sums(
            window.channels.square().sum(dim=0),
            *(rows.first + steps, rows.last + steps, columns.first + steps, columns.last + steps),
        )
        return sums / (energy_a * energy_b).sqrt().clamp(min=1e-6)

    def _search(self, a: Features, window: Features, limit: float) -> tuple[_Peaks, Tensor]:
        """Best displacement of every cell, and whether no other cell has a better score for the same place."""
        radius, side = math.floor(limit), 2 * (self.template_px // (2 * STRIDE)) + 1
        height, width = grid_size(a)
        margin = radius // STRIDE + 1
        best_at_place = torch.full((height + 2 * margin, width + 2 * margin), -math.inf)
        rows, peaks = max(1, _MAX_ENTRIES // ((2 * radius + 1) ** 2 * width)), []
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            first, last = max(top - side // 2, 0), min(bottom + side // 2, height)  # cells under these templates
            strip_a = _rows(a, first * STRIDE, last * STRIDE)
            strip_b = _rows(window, first * STRIDE, last * STRIDE + 2 * radius)
            scores = self._similarities(strip_a, strip_b, radius, side)
            scores = scores.masked_fill(~_possible(strip_a, strip_b, limit, side, self.min_template), -math.inf)
            scores = scores[..., top - first : bottom - first, :]
            peaks.append(_peaks(scores))
            _raise_to_scores(best_at_place[top : bottom + 2 * margin], scores)
        joined = _Peaks(*(torch.cat(parts) for parts in zip(*peaks, strict=True)))
        place = torch.floor((joined.displacement + STRIDE / 2) / STRIDE).long() + margin
        y, x = place[..., 1] + torch.arange(height)[:, None], place[..., 0] + torch.arange(width)
        return joined, joined.score >= best_at_place[y, x]


class _Peaks(NamedTuple):
    """Of each cell: highest score and its confidence (h, w), whole-pixel displacement and refinement (h, w, 2), px."""

    score: Tensor
    confidence: Tensor
    displacement: Tensor
    refinement: Tensor


def _whole_image_shift(a: Features, b: Features) -> tuple[int, int]:
    """Shift (dx, dy) in whole px with the highest mean product of features."""
    max_shift = max(*a.size, *b.size) - 1
    scores = shift_scores(a, b, max_shift)
    row, column = np.unravel_index(np.argmax(scores), scores.shape)
    return int(column) - max_shift, int(row) - max_shift


def _framed(b: Features, size: tuple[int, int], offset: tuple[int, int], margin: int) -> Features:
    """The part of `b` that lies under an image of `size` moved by `offset`, `margin` px wider all round."""
    left, top = offset[0] - margin, offset[1] - margin
    right, bottom = left + size[1] + 2 * margin, top + size[0] + 2 * margin
    pad = (-left, right - b.size[1], -top, bottom - b.size[0])  # negative values crop
    return Features(F.pad(b.channels, pad), F.pad(b.usable, pad))


def _rows(features: Features, first: int, last: int) -> Features:
    return Features(features.channels[:, first:last], features.usable[first:last])


def _gradients(sar: Tensor, optical: Tensor) -> tuple[Features, Features]:
    return oriented_gradients(sar, SAR_SIGMA_PX), oriented_gradients(optical, OPTICAL_SIGMA_PX)


def grid_size(features: Features) -> tuple[int, int]:
    """Rows and columns of keypoints."""
    return features.size[0] // STRIDE, features.size[1] // STRIDE


def _possible(a: Features, window: Features, limit: float, side: int, min_template: float) -> Tensor:
    """Displacements up to `limit` px at which enough of the template lies on the optical image, (K, K, h, w) bool."""
    radius = math.floor(limit)
    rows, columns = _spans(a, window, radius, side)
    steps = torch.arange(-radius, radius + 1).square()
    within = (steps[:, None] + steps).sqrt() <= limit
    return within[..., None, None] & (rows.share[:, None, :, None] * columns.share[:, None] >= min_template)


class _Spans(NamedTuple):
    """Along one axis: pixels [first, last) of a template that are compared, and their share of all, each (K, n)."""

    first: Tensor
    last: Tensor
    share: Tensor


def _spans(a: Features, window: Features, radius: int, side: int) -> list[_Spans]:
    """Of rows and of columns."""
    steps, spans = torch.arange(2 * radius + 1)[:, None], []
    for axis in (0, 1):
        (begin_a, end_a), (begin_b, end_b) = (_extent(image.usable.any(dim=1 - axis)) for image in (a, window))
        cells = torch.arange(a.size[axis] // STRIDE)
        first = ((cells - side // 2) * STRIDE).clamp(begin_a, end_a).expand(len(steps), -1)
        last = ((cells + side // 2 + 1) * STRIDE).clamp(begin_a, end_a).expand(len(steps), -1)
        compared_first = first.clamp(min=begin_b - steps)
        compared_last = torch.maximum(last.clamp(max=end_b - steps), compared_first)
        share = (compared_last - compared_first) / (last - first).clamp(min=1)
        spans.append(_Spans(compared_first, compared_last, share))
    return spans


def _extent(usable: Tensor) -> tuple[int, int]:
    """First true position, and the one after the last."""
    positions = usable.nonzero()
    return (int(positions[0]), int(positions[-1]) + 1) if len(positions) else (0, 0)


def _rectangle_sums(image: Tensor, top: Tensor, bottom: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Sums of an image over rectangles: rows [top, bottom) (K, h), columns [left, right) (L, w) -> (K, L, h, w)."""
    integral = F.pad(image.double().cumsum(0).cumsum(1), (1, 0, 1, 0))
    height, width = image.shape
    rows = (integral[bottom.clamp(0, height)] - integral[top.clamp(0, height)]).float()  # (K, h, W + 1)
    sums = rows[..., right.clamp(0, width)] - rows[..., left.clamp(0, width)]  # (K, h, L, w)
    return sums.transpose(1, 2)


def _peaks(scores: Tensor) -> _Peaks:
    """Maximum of a volume (K, K, h, w) over its displacements."""
    size, radius = scores.shape[0], scores.shape[0] // 2
    flat = scores.flatten(0, 1)
    score, index = flat.max(dim=0)
    padded = F.pad(scores.flatten(2).permute(2, 0, 1), (1, 1, 1, 1), value=-math.inf)  # (hw, K + 2, K + 2)
    cell = torch.arange(len(padded))
    y, x = index.flatten() // size + 1, index.flatten() % size + 1
    shift = [
        parabola_peak(padded[cell, y - dy, x - dx], score.flatten(), padded[cell, y + dy, x + dx])
        for dx, dy in ((1, 0), (0, 1))
    ]
    refinement = torch.from_numpy(np.stack(shift, axis=-1)).float().unflatten(0, score.shape)
    displacement = torch.stack([index % size - radius, index // size - radius], dim=-1)
    steps = torch.arange(size)[:, None, None]
    near_y, near_x = ((steps - at).abs() <= _PEAK_HALF_WIDTH for at in (index // size, index % size))  # (K, h, w)
    second = scores.masked_fill(near_y[:, None] & near_x, -math.inf).amax(dim=(0, 1))
    confidence = (1 - second.clamp(min=0) / score.clamp(min=1e-6)).clamp(0, 1)
    return _Peaks(score, confidence * (score > 0), displacement, refinement)


def _raise_to_scores(best: Tensor, scores: Tensor) -> None:
    """Raise `best` (h + 2 m, w + 2 m), one value a cell of the optical image, to any score that claims that cell."""
    size, height, width = scores.shape[1:]
    radius = size // 2
    margin = (best.shape[0] - height) // 2
    for row, column in np.ndindex(size, size):
        y = (row - radius + STRIDE // 2) // STRIDE + margin
        x = (column - radius + STRIDE // 2) // STRIDE + margin
        place = best[y : y + height, x : x + width]
        torch.maximum(place, scores[row, column], out=place)
