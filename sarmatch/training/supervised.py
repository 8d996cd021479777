"""Supervised fine-tuning on crops with a known relative transform: losses (section 4.2, table 2) and training."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

from sarmatch.config import CONFIDENT_PX, Config, TrainingConfig
from sarmatch.data.crops import Sample, TrainingCrops
from sarmatch.data.splits import Split
from sarmatch.evaluation.protocols import validation_scores
from sarmatch.geometry import TrueMap, cell_centres, cell_valid, inside
from sarmatch.matching.aggregation import aggregated_logits, fine_logits, pair_maps, plain_logits, reliability_weights
from sarmatch.matching.assignment import best, candidates, log_softmax
from sarmatch.matching.correlation import Volume, cell_grid, coarse_volume, disc, fine_volume, optical_cells
from sarmatch.matching.field import SIDE, residual_volume, smoothed_field
from sarmatch.matching.matcher import Matcher
from sarmatch.matching.position import FINE_RADIUS
from sarmatch.model import STRIDE, Descriptors, SarOpticalNet, encode_pair
from sarmatch.model.checkpoints import load_weights
from sarmatch.training.loop import CACHE_AT_MOST, SCALES, Validate, fit
from sarmatch.training.losses import attenuated_residual, matching_loss, mismatch_loss, row_loss

SCORE = "mma_3px"
"""Validation score that chooses the weights of fine-tuning and stops it early."""
THREADS_STEPS, THREADS_RTOL = 5, 1e-3
"""A seed gives the same bits with one number of threads; others sum in another order, and the losses of the first
THREADS_STEPS steps then agree within THREADS_RTOL (at most 2e-4 apart at the fifth step, over 12 seeds)."""


class Objective(nn.Module):
    """The network and its losses on a batch, as one module so that data-parallel training sees all parameters."""

    def __init__(self, net: SarOpticalNet, training: TrainingConfig) -> None:
        super().__init__()
        self.net, self.training_config = net, training

    def forward(self, batch: Sample) -> dict[str, Tensor]:
        """Scalar losses by name; `loss` is their weighted sum (table 2)."""
        sar, optical = self._describe(batch)
        with torch.autocast(batch["sar"].device.type, enabled=False):
            return self._losses(sar, optical, batch)

    def _describe(self, batch: Sample) -> tuple[Descriptors, Descriptors]:
        """Descriptors of both images, those of the fine level for the first `fine_share` of the batch."""
        images = batch["sar"], batch["optical"], batch["sar_valid"], batch["optical_valid"]
        encoded = encode_pair(self.net, images, fine=False, whole_cells=False)
        n_fine = max(1, round(len(batch["sar"]) * self.training_config.fine_share))
        sar, optical = (
            one.descriptors._replace(
                fine=encoder.full_resolution(one.prefix.first(n_fine), one.encoding.features[:n_fine]).float()
            )
            for encoder, one in zip((self.net.sar_encoder, self.net.optical_encoder), encoded, strict=True)
        )
        return sar, optical

    def _losses(self, sar: Descriptors, optical: Descriptors, batch: Sample) -> dict[str, Tensor]:
        forward, backward, sar_mask, optical_mask = true_displacements(batch)
        window = self.training_config.window_px / STRIDE
        radius = math.ceil(window)
        sar_valid, optical_valid = (cell_valid(batch[k], STRIDE) for k in ("sar_valid", "optical_valid"))
        volume = coarse_volume(sar.coarse, optical.coarse, radius, sar_valid, optical_valid)
        reliability = reliability_weights(self.net, sar, optical, radius)
        within = disc(radius, window, volume.values.device)
        targets = (forward / STRIDE, backward / STRIDE)
        logits = plain_logits(self.net, volume, reliability)
        losses = {"plain": matching_loss(logits, *targets, sar_mask, optical_mask, within)}
        if self.net.config.consensus_cells:
            logits = aggregated_logits(self.net, volume, reliability)
            # A cell whose counterpart lies off the image still has a true displacement, which aggregation can find.
            losses["consensus"] = matching_loss(logits, *targets, sar_valid, optical_valid, within)
            n_fine = len(sar.fine)
            losses["fine"] = self._fine_loss(sar.fine, optical.fine, forward[:n_fine], sar_mask[:n_fine], logits)
        means = {name: value.mean() for name, value in losses.items()}
        total = self.training_config.matching_weight * torch.stack(list(means.values())).sum()
        if self.net.config.uncertainty:
            # A cell whose counterpart lies beyond the window cannot be right, whatever the images show.
            within_window = sar_mask & (forward.norm(dim=-1) <= self.training_config.window_px)
            parts = self._uncertainty_losses(sar, optical, candidates(logits, within), forward, within_window)
            total = total + self.training_config.uncertainty_weight * torch.stack(list(parts.values())).sum()
            means |= parts
        return {"loss": total, **means}

    def _uncertainty_losses(
        self, sar: Descriptors, optical: Descriptors, row: Tensor, true_px: Tensor, mask: Tensor
    ) -> dict[str, Tensor]:
        """L_unc of the best displacement by logits (B, K*K, h, w), through which no gradient flows.

        `true_px` are true displacements, (B, h, w, 2) px; `mask` (B, h, w) bool the cells that count.
        """
        maps = pair_maps(self.net, sar, optical)
        assert maps is not None and sar.uncertainty is not None and optical.uncertainty is not None
        displacement, _ = best(row.detach())
        error = (displacement * STRIDE - true_px).norm(dim=-1)
        aleatoric = maps[0] + at_ends(maps[1], displacement)
        both = sar.uncertainty.fused[:, 0] + at_ends(optical.uncertainty.fused[:, 0], displacement)
        floor, growth = self.net.residual_log_scales
        correct = error <= CONFIDENT_PX
        losses = {
            "mismatch": mismatch_loss(aleatoric, correct, mask).mean(),
            "residual": attenuated_residual(error, floor + growth.exp() * (both - 1), mask).mean(),
        }
        if self.training_config.image_mismatch:
            # Right only where neither image spoils it: each map alone becomes a probability.
            ends = sar.uncertainty.fused[:, 0], at_ends(optical.uncertainty.fused[:, 0], displacement)
            losses["image_mismatch"] = mismatch_loss(1 - (1 - ends[0]) * (1 - ends[1]), correct, mask).mean()
        return losses

    def _fine_loss(self, sar: Tensor, optical: Tensor, displacement: Tensor, mask: Tensor, _: Volume) -> Tensor:
        """Cross-entropy of the fine volume around the central displacement of each pair, (B,)."""
        middle = displacement.shape[1] // 2
        central = displacement[:, middle, middle]  # of a bent crop only the cells within the volume's reach count
        # Up to 2 px off the truth, as a coarse match would be; a function of the sample, so that it does not depend on
        # the number of processes.
        jitter = (central * 1000).long() % 5 - 2
        offset = central.round().long() + jitter
        volume = fine_volume(sar, optical, offset, FINE_RADIUS, STRIDE)
        residual = displacement - offset[:, None, None]
        return row_loss(fine_logits(self.net, volume), residual, mask)


class AggregationObjective(Objective):
    """The same losses, of which the scales of the volumes alone learn; the encoders stay in evaluation."""

    def __init__(self, net: SarOpticalNet, training: TrainingConfig) -> None:
        super().__init__(net.requires_grad_(False), training)
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(name.endswith(SCALES))

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    @torch.no_grad()
    def _describe(self, batch: Sample) -> tuple[Descriptors, Descriptors]:
        return super()._describe(batch)

    def _fine_loss(self, sar: Tensor, optical: Tensor, displacement: Tensor, mask: Tensor, logits: Volume) -> Tensor:
        """Cross-entropy of the fine volume along the field that the coarse level finds, (B,)."""
        with torch.no_grad():
            found, log_probability = best(log_softmax(logits))
            n, weight = len(sar), log_probability.exp()
            field = smoothed_field(found[:n].float() * STRIDE, weight[:n], SIDE)
            volume = residual_volume(sar, optical, field)
        return row_loss(fine_logits(self.net, volume), displacement - field, mask)


def at_ends(optical_map: Tensor, displacement: Tensor) -> Tensor:
    """Values of a map on the optical cells (B, h, w) at each SAR cell's displacement (B, h, w, 2), (B, h, w)."""
    height, width = optical_map.shape[-2:]
    there, _ = optical_cells(cell_grid(height, width, optical_map.device), displacement, (height, width))
    return optical_map.flatten(1).gather(1, there.flatten(1)).unflatten(1, (height, width))


def true_displacements(batch: Sample) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where each cell truly lies in the other image.

    Returns:
        forward displacement of SAR cells and backward displacement of optical cells as `matching_loss` wants them,
        (B, h, w, 2) in px; masks (B, h, w) of cells with a counterpart inside the other image and with valid data.
    """
    height, width = batch["sar"].shape[-2:]
    truth = TrueMap(batch["A_sar_to_optical"].float(), batch["field"])
    grid = cell_centres(height // STRIDE, width // STRIDE, STRIDE, device=truth.affine.device)
    points = grid.reshape(1, -1, 2).expand(len(truth.affine), -1, -1)
    there = truth.to_optical(points).reshape(-1, *grid.shape)
    back = truth.to_sar(points).reshape(-1, *grid.shape)
    sar_mask = inside(there, (height, width)) & cell_valid(batch["sar_valid"], STRIDE)
    optical_mask = inside(back, (height, width)) & cell_valid(batch["optical_valid"], STRIDE)
    return there - grid, grid - back, sar_mask, optical_mask


def finetune(
    config: Config,
    split: Split,
    folder: Path,
    initial: Mapping[str, Tensor] | Path | None = None,
    show_progress: bool = True,
) -> None:
    """Train on `split.train`, or go on where the run in `folder` stopped; `model.safetensors` keeps the best weights.

    Validation on `split.selection` chooses them and stops early, by `SCORE`.

    Args:
        initial: weights to start from, as `SarOpticalNet.state_dict()` or a file of `save_weights`.

    Raises:
        ValueError: there are no training pairs, or `initial` is of another network.
    """
    set_seed(config.seed)
    objective = Objective(SarOpticalNet(config.model), config.training)
    if initial is not None:
        _load_initial(objective.net, initial)
    crops = TrainingCrops(split.train, config.data, config.seed, cache=len(split.train) <= CACHE_AT_MOST)
    fit(objective, crops, config.training, config.seed, folder, _validation(config, split), SCORE, show_progress)


def fit_aggregation(config: Config, split: Split, folder: Path, initial: Path, show_progress: bool = True) -> None:
    """Give a finished fine-tuning, the file `initial`, its deformable neighbourhoods, and fit the scales of all."""
    set_seed(config.seed)
    fit_of = config.aggregation
    wide = dataclasses.replace(config.model, deformable_cells=fit_of.deformable_cells, field_rounds=fit_of.field_rounds)
    net = SarOpticalNet(wide)
    net.load_state_dict(net.state_dict() | load_weights(initial)[0].state_dict())
    radius = config.evaluation.headline_radius
    own = dataclasses.replace(config.training, uncertainty_weight=0.0, fine_share=1.0, window_px=radius)
    data = dataclasses.replace(config.data, crop_size=config.aggregation.crop_size)
    crops = TrainingCrops(split.train, data, config.seed, cache=len(split.train) <= CACHE_AT_MOST)
    validate = _validation(config, split)
    fit(AggregationObjective(net, own), crops, config.aggregation, config.seed, folder, validate, None, show_progress)


def _validation(config: Config, split: Split) -> Validate:
    """Scores on the validation scenes that choose weights."""
    scoring = dataclasses.replace(config.evaluation, max_pairs=config.training.validation_pairs)

    def validate(objective: Objective) -> dict[str, float]:
        net = objective.net
        matcher = Matcher(net, next(net.parameters()).device)
        return validation_scores(matcher, split.selection, scoring, config.training.validate_deformed)

    return validate


def _load_initial(net: SarOpticalNet, initial: Mapping[str, Tensor] | Path) -> None:
    weights = load_weights(initial)[0].state_dict() if isinstance(initial, Path) else initial
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"initial: the weights do not fit the network of config.model; pretrain with the same model ({error})"
        ) from error
