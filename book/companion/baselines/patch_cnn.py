"""Match or no match, from one branch for both images (Mou et al. 2017, ref. 19)."""

from __future__ import annotations

from torch import Tensor

from companion.baselines.learned import Branch, PeerSize
from companion.baselines.pseudo_siamese import PseudoSiameseNet


class PatchNet(PseudoSiameseNet):
    """Both images pass through the same layers, so these take the first SAR band and the mean of the optical bands.

    Adapted like its successor, the pseudo-siamese network.
    """

    def __init__(self, config: PeerSize) -> None:
        super().__init__(config)
        self.sar_branch = Branch(1, config.width)
        del self.optical_branch

    def features(self, sar: Tensor, optical: Tensor) -> tuple[Tensor, Tensor]:
        return self.sar_branch(sar[:, :1]), self.sar_branch(optical.mean(dim=1, keepdim=True))
