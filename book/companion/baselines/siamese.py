"""Two branches or one: match or no match, then matching in three steps."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from companion.baselines.learned import (
    FAR_CELLS,
    Branch,
    CosineNet,
    PeerSize,
    ScoringNet,
    around,
    cosines,
    true_cells,
    true_places,
)
from sarmatch.data.crops import Sample
from sarmatch.matching.aggregation import consensus
from sarmatch.matching.correlation import MASKED, Volume
from sarmatch.model import STRIDE

NEGATIVES = 8  # places drawn for each cell that do not match it
_AT_ONCE = 200_000  # pairs scored at a time
TEMPLATE_CELLS = 9  # side of the template whose features are correlated
HEATMAP_HALF = 4  # half-width of the part of a heat map that the outlier network takes, in cells
RIGHT_CELLS = 0.75  # an answer within 3 px is right
LEFT_OUT = 0.5  # share of places, those of least goodness, that are not matched


class PairHead(nn.Module):
    """Fusion by concatenation, then layers up to one logit: does this SAR cell show what this optical cell shows?

    The first layer is a sum of two, so that each cell passes through its own part once.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sar, self.optical = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.rest = nn.Sequential(nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, sar: Tensor, optical: Tensor) -> Tensor:
        """Logits (...) of what `sar` and `optical` layers made of features (..., width)."""
        logits: Tensor = self.rest(sar + optical)[..., 0]
        return logits


class PseudoSiameseNet(ScoringNet):
    """Two unshared branches, fusion, and a score that is a probability to match (Hughes et al. 2018, ref. 7).

    Adapted: the original takes a pair of patches of 112 px. Here the branches run over whole images once and the fusion
    layers for each pair of candidate cells: the same network on a patch of about 70 px around every fourth pixel.
    Trained by binary cross-entropy, matches and non-matches weighing alike.
    """

    def __init__(self, config: PeerSize) -> None:
        super().__init__(config)
        self.head = PairHead(config.width)

    def features(self, sar: Tensor, optical: Tensor) -> tuple[Tensor, Tensor]:
        """Of all cells of both images, (B, width, h, w)."""
        return self.sar_branch(sar), self.optical_branch(optical)

    def describe(self, sar: Tensor, optical: Tensor) -> tuple[Tensor, Tensor]:
        """What the head takes of both images, (B, N, width) and (B, M, width)."""
        first, second = (x.flatten(2).transpose(1, 2) for x in self.features(sar, optical))
        return self.head.sar(first), self.head.optical(second)

    def losses(self, batch: Sample, *described: Tensor) -> dict[str, Tensor]:
        own, true, right, mask = true_places(batch)
        a, b = described
        last, window = own[-1], self.config.window_cells
        # Within the window: a place far away would be recognised by its position alone.
        drawn = own.long() + torch.randint(-window, window + 1, (NEGATIVES, *true.shape), device=a.device)
        far = ((drawn - true).abs() > FAR_CELLS).any(dim=-1) & ((drawn >= 0) & (drawn <= last)).all(dim=-1)
        drawn = torch.minimum(drawn.clamp(min=0), last.long())
        drawn_index = drawn[..., 1] * (batch["sar"].shape[-1] // STRIDE) + drawn[..., 0]  # (NEGATIVES, B, N)
        flat = torch.cat([right[None], drawn_index]).transpose(0, 1).flatten(1)
        others = b.gather(1, flat[..., None].expand(-1, -1, b.shape[2])).unflatten(1, (1 + NEGATIVES, -1))
        logits = self.head(a[:, None], others)
        negative = far.transpose(0, 1) & mask[:, None]
        positive_loss = F.softplus(-logits[:, 0])[mask].sum() / mask.sum().clamp(min=1)
        negative_loss = F.softplus(logits[:, 1:])[negative].sum() / negative.sum().clamp(min=1)
        return {"loss": (positive_loss + negative_loss) / 2, "positive": positive_loss, "negative": negative_loss}

    def scores(self, sar: Tensor, optical: Tensor, candidates: Tensor) -> Tensor:
        a, b = (x[0] for x in self.describe(sar, optical))
        rows, columns = candidates.nonzero(as_tuple=True)
        scores = sar.new_zeros(candidates.shape)
        for row, column in zip(rows.split(_AT_ONCE), columns.split(_AT_ONCE), strict=True):
            scores[row, column] = self.head(a[row], b[column])
        return scores

    def confidence(self, scores: Tensor, rows: Tensor, columns: Tensor, size: tuple[int, int]) -> Tensor:
        """The probability to match that the head gives."""
        return scores[rows, columns].sigmoid()


class PatchNet(PseudoSiameseNet):
    """The same layers for both images, of the first SAR band and the mean optical band (Mou et al. 2017, ref. 19).

    Adapted like the network above, its successor.
    """

    def __init__(self, config: PeerSize) -> None:
        super().__init__(config)
        self.sar_branch = Branch(1, config.width)
        del self.optical_branch

    def features(self, sar: Tensor, optical: Tensor) -> tuple[Tensor, Tensor]:
        return self.sar_branch(sar[:, :1]), self.sar_branch(optical.mean(dim=1, keepdim=True))


class ThreeStepNet(CosineNet):
    """Which places are good, where they lie, which answers to believe (Hughes et al. 2020, ref. 8).

    Correspondence: features of two scales from unshared branches, correlated over a template; the heat map is a softmax
    over the search window. Goodness: from the SAR features alone, whether the maximum of the heat map will be right.
    Outlier: from the heat map around its maximum, whether it is.

    Adapted: the three learn at once, the latter two without a gradient to the first; templates of 36 px stand around
    every fourth pixel. Matches are the mutual best among good places; the outlier network gives their confidence.
    """

    def __init__(self, config: PeerSize) -> None:
        super().__init__(config, scale=30.0)
        self.goodness = nn.Sequential(
            nn.Conv2d(2 * config.width, config.width, 3, padding=1), nn.ReLU(), nn.Conv2d(config.width, 1, 1)
        )
        self.outlier = nn.Sequential(
            nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(1)
        )
        self.outlier(torch.zeros(1, 1, 2 * HEATMAP_HALF + 1, 2 * HEATMAP_HALF + 1))  # fixes the last layer's size

    def describe(self, sar: Tensor, optical: Tensor) -> tuple[Tensor, Tensor]:
        """Both scales of both images, (B, 2 width, h, w)."""
        return _two_scales(self.sar_branch, sar), _two_scales(self.optical_branch, optical)

    def losses(self, batch: Sample, *described: Tensor) -> dict[str, Tensor]:
        volume = consensus(self.volume(batch, *described), TEMPLATE_CELLS)
        correspondence = self.contrast(volume, batch)
        forward, _, mask, _ = true_cells(batch)
        right, windows = self._answers(volume, forward)
        weight = mask.flatten() / mask.sum().clamp(min=1)
        goodness, outlier = (
            F.binary_cross_entropy_with_logits(logits.flatten(), right, weight, reduction="sum")
            for logits in (self.goodness(described[0].detach()), self.outlier(windows[:, None]))
        )
        parts = {"correspondence": correspondence, "goodness": goodness, "outlier": outlier}
        return {"loss": correspondence + goodness + outlier, **parts}

    @torch.no_grad()
    def _answers(self, volume: Volume, true: Tensor) -> tuple[Tensor, Tensor]:
        """Of each cell, whether its best answer is right (n,) float, and the heat map around it (n, k, k)."""
        logits = (volume.values * self.log_scale.exp()).masked_fill(~volume.valid, MASKED)
        size = logits.shape[1]
        maps = logits.permute(0, 3, 4, 1, 2).flatten(0, 2)
        best = maps.flatten(1).argmax(dim=1)
        found = torch.stack([best % size, best // size], dim=1) - volume.radius
        error = (found - true.flatten(0, 2)).norm(dim=1)
        return (error <= RIGHT_CELLS).float(), heat_around(maps, best)

    def scores(self, sar: Tensor, optical: Tensor, candidates: Tensor) -> Tensor:
        a, b = self.describe(sar, optical)
        by_cell = cosines(a, b)[0].unflatten(1, b.shape[-2:]).unflatten(0, a.shape[-2:])
        return template_means(by_cell, TEMPLATE_CELLS).flatten(2).flatten(0, 1) * self.log_scale.exp()

    def confidence(self, scores: Tensor, rows: Tensor, columns: Tensor, size: tuple[int, int]) -> Tensor:
        """The outlier network's probability that the maximum of the heat map is right."""
        windows = heat_around(scores[rows].unflatten(1, size), columns)
        return self.outlier(windows[:, None])[:, 0].sigmoid()

    def select(self, sar: Tensor, cells: Tensor) -> Tensor:
        """Good places: the better half, since the level of goodness follows the success of the training."""
        goodness = self.goodness(_two_scales(self.sar_branch, sar)).flatten()
        return goodness[cells] >= goodness.quantile(LEFT_OUT)


def _two_scales(branch: nn.Module, image: Tensor) -> Tensor:
    return torch.cat([F.normalize(stage, dim=1) for stage in branch.stages(image)], dim=1)  # type: ignore[operator]


def heat_around(maps: Tensor, best: Tensor) -> Tensor:
    """Probabilities (n, k, k) around the maximum of each map (n, H, W) of logits, times 10 to be of order 1."""
    log_total = maps.flatten(1).logsumexp(dim=1)
    return 10 * (around(maps, best, HEATMAP_HALF) - log_total[:, None, None]).exp()


def template_means(similarity: Tensor, side: int) -> Tensor:
    """Mean over a template of the similarities of cells that lie alike in it, (h, w, h', w').

    Entry (y, x, y', x') becomes the mean of (y + i, x + j, y' + i, x' + j) over those i, j up to side // 2 either way
    whose cells lie on both grids.
    """
    for axes in ((0, 2), (1, 3)):
        along = similarity.movedim(axes, (0, 1))
        total, count = torch.zeros_like(along), along.new_zeros(along.shape[:2])
        for step in range(-(side // 2), side // 2 + 1):
            here = tuple(slice(max(0, -step), min(n, n - step)) for n in count.shape)
            there = tuple(slice(s.start + step, s.stop + step) for s in here)
            count[here] += 1
            total[here] += along[there]
        similarity = (total / count[:, :, None, None]).movedim((0, 1), axes)
    return similarity
