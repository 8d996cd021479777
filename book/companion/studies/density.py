"""How far features lie from those of training: an estimate of what the weights cannot know (section 5.5)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sarmatch.config import Config
from sarmatch.data.pairs import Pairs
from sarmatch.matching.assignment import Prediction
from sarmatch.matching.epistemic import by_cell, other_end
from sarmatch.model import SarOpticalNet
from sarmatch.training.distillation import CROPS, some_cells, training_crops


@dataclass(frozen=True, eq=False)
class Density:
    """Gaussian of each modality's features F over training cells, after Lee et al. (2018) and Mukhoti et al. (2023).

    What lies far from all that was seen in training is what the weights cannot know. Of features, not of descriptors:
    these lie on a sphere, on which the shipped weights put test patterns among the images of training.

    Attributes:
        means: of the SAR and of the optical features, (2, C).
        precisions: inverses of their shrunk covariances (Ledoit and Wolf), (2, C, C).
    """

    means: Tensor
    precisions: Tensor

    @classmethod
    def fit(
        cls,
        net: SarOpticalNet,
        pairs: Pairs,
        config: Config,
        seed: int,
        crops: int = CROPS,
        cells: int = 256,
        show_progress: bool = True,
    ) -> Density:
        """From the deterministic pass over training crops; nothing is trained.

        Args:
            pairs: the training part.
            seed: of crops and cells.
            cells: of each image of a crop, at most.

        Raises:
            ValueError: no pairs, no crops, or no cells with data.
        """
        rng = np.random.default_rng((seed, 1))
        parts: tuple[list[Tensor], list[Tensor]] = [], []
        for sar, optical, _ in training_crops(net, pairs, config, seed, crops, "density", show_progress):
            for rows, image in zip(parts, (sar, optical), strict=True):
                rows.append(by_cell(image.encoding.features)[some_cells(image.valid.flatten(), cells, rng)].cpu())
        tables = [torch.cat(rows).double().numpy() for rows in parts]
        if min(map(len, tables)) < 2:
            raise ValueError("pairs: fewer than two cells of training crops carry data; check their valid masks")
        from sklearn.covariance import LedoitWolf

        fits = [LedoitWolf().fit(table) for table in tables]
        means, precisions = (np.stack([getattr(fit, name) for fit in fits]) for name in ("location_", "precision_"))
        return cls(torch.from_numpy(means).float(), torch.from_numpy(precisions).float())

    @torch.no_grad()
    def distance(self, sar: Tensor, optical: Tensor, prediction: Prediction) -> Tensor:
        """How far both ends of each SAR cell's best match lie from training, (1, h, w) >= 0, without unit.

        log(1 + d), d the squared Mahalanobis distances of both ends summed, per channel of both: its mean over training
        cells is 1 before the logarithm.

        Args:
            sar, optical: features F (1, C, h, w), `Encoding.features`.

        Raises:
            ValueError: features of another network, or of another size than the prediction.
        """
        there, _ = other_end(prediction, sar, optical)
        if not sar.shape[1] == optical.shape[1] == self.means.shape[1]:
            raise ValueError(
                f"sar, optical: expected features of {self.means.shape[1]} channels, to which the density was fitted, "
                f"got {sar.shape[1]} and {optical.shape[1]}; fit one to this network"
            )
        first, second = (self._squared(i, by_cell(features)) for i, features in enumerate((sar, optical)))
        total = (first + second[there]) / self.means.numel()
        return total.log1p().unflatten(0, (1, *prediction.forward.shape[-2:]))

    def _squared(self, modality: int, x: Tensor) -> Tensor:
        """Squared Mahalanobis distance of rows (N, C), (N,)."""
        off = x - self.means[modality].to(x)
        return ((off @ self.precisions[modality].to(x)) * off).sum(1).clamp(min=0)
