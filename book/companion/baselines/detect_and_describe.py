"""One feature map that both detects and describes (D2-Net, Dusmanu et al. 2019, ref. 5), on the paper's encoders."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from companion.baselines.base import as_matches, ratio_matches
from companion.baselines.learned import FAR_CELLS, PeerNet, PeerSize, cosines, log_scale, true_places
from sarmatch.config import ModelConfig
from sarmatch.data.crops import Sample
from sarmatch.matching.correlation import MASKED
from sarmatch.matching.matches import Matches
from sarmatch.model import OpticalEncoder, SarEncoder


class DetectAndDescribeNet(PeerNet):
    """Channels of a map are detectors, its vectors are descriptors; a loss weighted by detection trains both.

    Adapted: the encoders of section 3.1 at reduced width, one for each modality, in place of a VGG; keypoints
    stay at the centres of cells of 4 px; cross-entropy over all far cells in place of the hardest negative's triplet,
    which from scratch did not leave its margin. Confidence is one minus the distance ratio to the next neighbour.
    """

    def __init__(self, config: PeerSize) -> None:
        super().__init__(config)
        width = config.width
        model = ModelConfig(
            sar_channels=config.sar_channels,
            optical_channels=config.optical_channels,
            sar_widths=(width // 2, width // 2, width, width, width),
            optical_widths=(width // 2, width // 2, width, width),
            bifpn_width=width,
            bifpn_repeats=2,
            feature_width=width,
            fine_width=8,
            fine_dim=8,
            uncertainty=False,
        )
        self.sar_encoder, self.optical_encoder = SarEncoder(model), OpticalEncoder(model)
        for encoder in (self.sar_encoder, self.optical_encoder):
            encoder.fine = nn.Identity()  # type: ignore[assignment]  # the original has no such level
        self.log_scale = log_scale(1 / 0.1)

    def describe(self, sar: Tensor, optical: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (B, width, h, w) of both images, at least 0."""
        a, b = self.sar_encoder.encode(sar), self.optical_encoder.encode(optical)
        return F.instance_norm(a).relu(), F.instance_norm(b).relu()

    def losses(self, batch: Sample, *described: Tensor) -> dict[str, Tensor]:
        own, true, right, mask = true_places(batch)
        a, b = described
        detection_a, detection_b = (soft_detection(x).flatten(1) for x in (a, b))
        near = ((own - true[:, :, None]).abs() <= FAR_CELLS).all(dim=-1)  # (B, N, M), neither right nor wrong
        near.scatter_(2, right[..., None], False)
        logits = (cosines(a, b) * self.log_scale.exp()).masked_fill(near, MASKED)
        nll = -logits.log_softmax(dim=2) - logits.log_softmax(dim=1)
        each = nll.gather(2, right[..., None])[..., 0] / 2
        weight = detection_a * detection_b.gather(1, right) * mask
        loss = ((weight * each).sum(dim=1) / weight.sum(dim=1).clamp(min=1e-9)).mean()
        return {"loss": loss, "unweighted": (each * mask).sum() / mask.sum().clamp(min=1)}

    def find(self, sar: Tensor, optical: Tensor, limit: float) -> Matches:
        maps = self.describe(sar, optical)
        cells = [detected(x).flatten().nonzero()[:, 0] for x in maps]
        if min(len(c) for c in cells) < 2:
            return Matches.empty()
        points = [self.centres(x)[c] for x, c in zip((sar, optical), cells, strict=True)]
        a, b = (F.normalize(x, dim=1)[0].flatten(1)[:, c].T for x, c in zip(maps, cells, strict=True))
        distance = torch.cdist(a, b).masked_fill(torch.cdist(points[0], points[1]) > limit, math.inf)
        rows, columns, ratio = ratio_matches(distance)
        return as_matches(points[0][rows], points[1][columns], (1 - ratio).clamp(0, 1))


def soft_detection(features: Tensor) -> Tensor:
    """How much each cell (B, h, w) is a keypoint: largest over channels of local maximum times channel maximum."""
    exp = (features - features.amax(dim=(1, 2, 3), keepdim=True)).exp()
    local = exp / (9 * F.avg_pool2d(exp, 3, stride=1, padding=1)).clamp(min=1e-9)
    across = features / features.amax(dim=1, keepdim=True).clamp(min=1e-9)
    score = (local * across).amax(dim=1)
    return score / score.sum(dim=(1, 2), keepdim=True).clamp(min=1e-9)


def detected(features: Tensor) -> Tensor:
    """Cells (B, h, w) bool whose strongest channel has a maximum of its 3 x 3 neighbourhood there."""
    strongest = features == features.amax(dim=1, keepdim=True)
    local = features == F.max_pool2d(features, 3, stride=1, padding=1)
    return (strongest & local & (features > 0)).any(dim=1)
