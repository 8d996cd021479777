"""What all methods share that are trained here: standardised images are described on cells of 4 px, as by ours."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from timm.layers import ConvNormAct
from torch import Tensor, nn

from companion.baselines.base import Baseline, as_matches, mutual_best, on_image
from sarmatch.data.crops import Sample
from sarmatch.geometry import Search, cell_centres, cell_valid
from sarmatch.matching.correlation import MASKED, Volume, coarse_volume
from sarmatch.matching.matches import Matches
from sarmatch.model import STRIDE
from sarmatch.model.layers import evaluating, fill_invalid, norm_layer, standardise
from sarmatch.training.losses import matching_loss
from sarmatch.training.supervised import true_displacements

MULTIPLE = 16  # px, of which the sides of padded images are a multiple
FAR_CELLS = 2  # from the true place along either axis; cells further away are wrong ones in training


@dataclass(frozen=True)
class PeerSize:
    """Size of a peer's network and the window that it learns in."""

    sar_channels: int = 1
    optical_channels: int = 3
    width: int = 64  #: Channels of its descriptors, a multiple of 16.
    window_cells: int = 9  #: Candidates in training lie within this many cells of the same position.

    def __post_init__(self) -> None:
        if self.width <= 0 or self.width % 16:
            raise ValueError(f"width must be a positive multiple of 16, got {self.width}")


class PeerNet(nn.Module, ABC):
    """A network of a method that is trained here."""

    def __init__(self, config: PeerSize) -> None:
        super().__init__()
        self.config = config

    @property
    def net(self) -> PeerNet:
        """Itself: what the training loop keeps of an objective."""
        return self

    @abstractmethod
    def describe(self, sar: Tensor, optical: Tensor) -> tuple[Tensor, ...]:
        """What the network makes of standardised images, (B, C, H, W) each; in training it may run in 16 bits."""

    @abstractmethod
    def losses(self, batch: Sample, *described: Tensor) -> dict[str, Tensor]:
        """Scalar losses of standardised crops and their descriptions, float32; `loss` is what is minimised."""

    @abstractmethod
    def find(self, sar: Tensor, optical: Tensor, limit: float) -> Matches:
        """Match two standardised images (1, C, H, W), sides multiples of 16 px, over at most `limit` px (inf: any)."""

    @staticmethod
    def centres(image: Tensor) -> Tensor:
        """Positions (N, 2) of the cells of an image (1, C, H, W), px."""
        return cell_centres(image.shape[-2] // STRIDE, image.shape[-1] // STRIDE, STRIDE, image.device).flatten(0, 1)

    def forward(self, batch: Sample) -> dict[str, Tensor]:
        """The losses of a batch of training crops."""
        prepared = batch.copy()
        prepared["sar"] = standardise(fill_invalid(batch["sar"], batch["sar_valid"]))
        prepared["optical"] = standardise(fill_invalid(batch["optical"], batch["optical_valid"]))
        described = self.describe(prepared["sar"], prepared["optical"])
        with torch.autocast(batch["sar"].device.type, enabled=False):  # as in the objective of our own network
            return self.losses(prepared, *(x.float() for x in described))


@dataclass(frozen=True)
class LearnedMatcher(Baseline):
    """A trained network behind the common call; matching leaves the mode of the network as it is."""

    net: PeerNet = field(repr=False)
    name: str = ""  #: Of the training, which keeps stored matches apart.

    def match(self, sar: Tensor, optical: Tensor, search_radius: float | None = None) -> Matches:
        """Match two images, with the method's own confidence; an image that is the same everywhere has no matches."""
        Search(search_radius)  # rejects what is no radius
        device = next(self.net.parameters()).device
        prepared = []
        for name, image in (("sar", sar), ("optical", optical)):
            channels = getattr(self.net.config, f"{name}_channels")
            if image.ndim != 3 or len(image) != channels or min(image.shape[1:]) < MULTIPLE:
                raise ValueError(
                    f"{name} must be ({channels}, H, W) with sides of at least {MULTIPLE} px, got {tuple(image.shape)}"
                )
            height, width = image.shape[1:]
            whole = standardise(image[None].float().to(device))
            prepared.append(F.pad(whole, (0, -width % MULTIPLE, 0, -height % MULTIPLE)))
        if any(bool((image == 0).all()) for image in prepared):
            return Matches.empty()
        with torch.inference_mode(), evaluating(self.net):
            found = self.net.find(prepared[0], prepared[1], torch.inf if search_radius is None else search_radius)
        return found.select(on_image(found.xy_sar, sar) & on_image(found.xy_optical, optical))


class Branch(nn.Module):
    """Plain convolutions from an image to features (B, width, H/4, W/4) with a receptive field of about 70 px."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        norm = norm_layer("group")
        self.stem = nn.Sequential(
            ConvNormAct(channels, width // 2, 5, stride=2, norm_layer=norm),
            ConvNormAct(width // 2, width // 2, 3, norm_layer=norm),
            ConvNormAct(width // 2, width, 3, stride=2, norm_layer=norm),
        )
        self.narrow = ConvNormAct(width, width, 3, norm_layer=norm)
        self.wide = nn.Sequential(
            ConvNormAct(width, width, 3, dilation=2, norm_layer=norm),
            ConvNormAct(width, width, 3, dilation=4, norm_layer=norm),
            nn.Conv2d(width, width, 1),
            nn.InstanceNorm2d(width),  # what all cells share distinguishes none
        )

    def stages(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Features of the last but one and of the last stage."""
        narrow = self.narrow(self.stem(image))
        return narrow, self.wide(narrow)

    def forward(self, image: Tensor) -> Tensor:
        return self.stages(image)[1]


class ScoringNet(PeerNet):
    """A method that scores pairs of cells and keeps mutual best ones; a new one implements `scores` and `losses`."""

    def __init__(self, config: PeerSize) -> None:
        super().__init__(config)
        self.sar_branch: nn.Module = Branch(config.sar_channels, config.width)
        self.optical_branch: nn.Module = Branch(config.optical_channels, config.width)

    @abstractmethod
    def scores(self, sar: Tensor, optical: Tensor, candidates: Tensor) -> Tensor:
        """Logits (N, M) of all cells of two standardised images (1, C, H, W); only those of `candidates` matter."""

    def confidence(self, scores: Tensor, rows: Tensor, columns: Tensor, size: tuple[int, int]) -> Tensor:
        """Dual-softmax probability of the matches of cells `rows` with cells `columns`, (n,) in [0, 1].

        `scores` are very low where no candidate is; `size` is that of the grid of optical cells.
        """
        log_probability = scores[rows, columns] * 2 - scores[rows].logsumexp(1) - scores[:, columns].logsumexp(0)
        return log_probability.exp()

    def select(self, sar: Tensor, cells: Tensor) -> Tensor:
        """Which of the mutual matches at SAR `cells` (n,) are kept, (n,) bool."""
        return torch.ones_like(cells, dtype=torch.bool)

    def find(self, sar: Tensor, optical: Tensor, limit: float) -> Matches:
        at_sar, at_optical = self.centres(sar), self.centres(optical)
        candidates = torch.cdist(at_sar, at_optical) <= limit
        scores = self.scores(sar, optical, candidates).masked_fill(~candidates, MASKED)
        rows, columns = mutual_best(scores)
        rows, columns = (x[candidates[rows, columns]] for x in (rows, columns))
        size = (optical.shape[-2] // STRIDE, optical.shape[-1] // STRIDE)
        confidence = self.confidence(scores, rows, columns, size).clamp(0, 1)
        keep = self.select(sar, rows)
        rows, columns, confidence = rows[keep], columns[keep], confidence[keep]
        xy_optical = at_optical[columns] + STRIDE * expected_step(scores[rows].unflatten(1, size), columns)
        return as_matches(at_sar[rows], xy_optical, confidence)


class CosineNet(ScoringNet):
    """Scores cells by scaled cosines of the first two outputs of `describe`, their descriptors (B, C, h, w).

    Trained by cross-entropy over a window as our network is.
    """

    def __init__(self, config: PeerSize, scale: float = 1 / 0.1) -> None:
        super().__init__(config)
        self.log_scale = log_scale(scale)

    def volume(self, batch: Sample, sar: Tensor, optical: Tensor) -> Volume:
        """Cosines of descriptors over the training window."""
        valid = (cell_valid(batch["sar_valid"], STRIDE), cell_valid(batch["optical_valid"], STRIDE))
        return coarse_volume(F.normalize(sar, dim=1), F.normalize(optical, dim=1), self.config.window_cells, *valid)

    def contrast(self, volume: Volume, batch: Sample) -> Tensor:
        """Cross-entropy of the row and column softmax of scaled similarities against the truth, a scalar."""
        logits = Volume(volume.values * self.log_scale.exp(), volume.valid)
        return matching_loss(logits, *true_cells(batch)).mean()

    def losses(self, batch: Sample, *described: Tensor) -> dict[str, Tensor]:
        return {"loss": self.contrast(self.volume(batch, *described), batch)}

    def scores(self, sar: Tensor, optical: Tensor, candidates: Tensor) -> Tensor:
        return cosines(*self.describe(sar, optical)[:2])[0] * self.log_scale.exp()


def around(maps: Tensor, index: Tensor, half: int) -> Tensor:
    """Windows (n, 2 half + 1, 2 half + 1) of maps (n, H, W) around a flat index (n,) of each, `MASKED` outside."""
    width = maps.shape[2]
    steps = torch.arange(2 * half + 1, device=maps.device)
    padded = F.pad(maps, (half, half, half, half), value=MASKED)
    y, x = (index // width)[:, None] + steps, (index % width)[:, None] + steps
    return padded[torch.arange(len(maps), device=maps.device)[:, None, None], y[:, :, None], x[:, None, :]]


def expected_step(maps: Tensor, index: Tensor) -> Tensor:
    """Expectation of (dx, dy) over the softmax of the 3 x 3 cells around an index of each map (n, H, W); (n, 2)."""
    weights = around(maps, index, 1).flatten(1).softmax(dim=1).unflatten(1, (3, 3))
    steps = torch.arange(-1.0, 2, device=maps.device)
    return torch.stack([(weights.sum(1) * steps).sum(1), (weights.sum(2) * steps).sum(1)], dim=1)


def log_scale(initial: float) -> nn.Parameter:
    """The learned logarithm of the scale of similarities."""
    return nn.Parameter(torch.tensor(math.log(initial)))


def true_cells(batch: Sample) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """True displacements of SAR and of optical cells, in cells, and masks of those that have a counterpart."""
    forward, backward, sar_mask, optical_mask = true_displacements(batch)
    return forward / STRIDE, backward / STRIDE, sar_mask, optical_mask


def true_places(batch: Sample) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """In cells: places (N, 2) of SAR cells, true ones (B, N, 2), the index (B, N) of the cell there, and the mask."""
    forward, _, mask, _ = true_cells(batch)
    height, width = mask.shape[1:]
    own = cell_centres(height, width, 1, mask.device).flatten(0, 1)
    true = own + forward.flatten(1, 2)
    nearest = torch.minimum(true.round().clamp(min=0), own[-1]).long()
    return own, true, nearest[..., 1] * width + nearest[..., 0], mask.flatten(1)


def cosines(sar: Tensor, optical: Tensor) -> Tensor:
    """Cosines (B, N, M) of the descriptors (B, C, h, w) and (B, C, h', w') of all cells."""
    a, b = (F.normalize(x, dim=1).flatten(2) for x in (sar, optical))
    return a.transpose(1, 2) @ b
