"""Match or no match, by two branches (Hughes et al. 2018, ref. 7) or one for both images (Mou et al. 2017, ref. 19)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from companion.baselines.learned import FAR_CELLS, Branch, PeerSize, ScoringNet, true_places
from sarmatch.data.crops import Sample
from sarmatch.model import STRIDE

NEGATIVES = 8  # places drawn for each cell that do not match it
_AT_ONCE = 200_000  # pairs scored at a time


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
    """Two unshared branches, fusion, and a score that is a probability to match.

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
    """Both images pass through the same layers, so these take the first SAR band and the mean of the optical bands.

    Adapted like the network above, its successor.
    """

    def __init__(self, config: PeerSize) -> None:
        super().__init__(config)
        self.sar_branch = Branch(1, config.width)
        del self.optical_branch

    def features(self, sar: Tensor, optical: Tensor) -> tuple[Tensor, Tensor]:
        return self.sar_branch(sar[:, :1]), self.sar_branch(optical.mean(dim=1, keepdim=True))
