"""Epistemic uncertainty from one pass instead of twenty (future work of section 5.5).

Each estimate is a map (1, h, w) >= 0 that `attach` puts in the place of the mutual information of Monte Carlo passes.
"""

import math

import torch
from torch import Tensor

from sarmatch.matching.assignment import Prediction, best
from sarmatch.matching.correlation import cell_grid, optical_cells
from sarmatch.model import Descriptors, SarOpticalNet

FLOOR = 1e-6  #: Mutual information in nats below which differences do not matter; it keeps the logarithm finite.
ENTROPY = -3  #: Column of `match_inputs` that holds the entropy of the row.


def match_inputs(prediction: Prediction, sar: Descriptors, optical: Descriptors) -> Tensor:
    """Inputs of an `EpistemicHead`: each SAR cell and the optical cell that its best displacement leads to.

    Returns:
        (B*h*w, 2 descriptor_dim + 4), rows in the order of the SAR images' cells: descriptors of both ends, log-
        probability of the best displacement, entropy of the row (nats), U_sar and U_opt (0 without such modules).
    """
    there, _ = other_end(prediction, sar.coarse, optical.coarse)
    log_best = prediction.forward.max(1).values.flatten()
    none = torch.zeros_like(log_best)
    aleatoric = [none if d.uncertainty is None else d.uncertainty.fused.flatten() for d in (sar, optical)]
    numbers = torch.stack([log_best, row_entropy(prediction).flatten(), aleatoric[0], aleatoric[1][there]], 1)
    return torch.cat([by_cell(sar.coarse), by_cell(optical.coarse)[there], numbers], 1)


def row_entropy(prediction: Prediction) -> Tensor:
    """Entropy of each SAR cell's displacement, nats, (B, h, w): the total uncertainty of one pass."""
    return -(prediction.forward.exp() * prediction.forward).sum(1)


def attach(prediction: Prediction, information: Tensor) -> Prediction:
    """The prediction with an estimate (B, h, w) as its mutual information, which matches then carry as `epistemic`."""
    if information.shape != (expected := (len(prediction.forward), *prediction.forward.shape[-2:])):
        raise ValueError(f"information must have one number a SAR cell, {expected}, got {tuple(information.shape)}")
    return prediction._replace(mutual_information=information)


@torch.no_grad()
def distilled_information(net: SarOpticalNet, prediction: Prediction, sar: Descriptors, optical: Descriptors) -> Tensor:
    """Estimate of the mutual information that Monte Carlo passes would find, nats, (B, h, w), by the trained head."""
    if not net.epistemic_head.distilled:
        raise ValueError(
            "the network's epistemic_head is untrained; train it with `sarmatch.training.distillation.distil` first"
        )
    log_information = net.epistemic_head(match_inputs(prediction, sar, optical))
    at_most = math.log(prediction.forward.shape[1])
    size = (len(prediction.forward), *prediction.forward.shape[-2:])
    return (log_information.exp() - FLOOR).clamp(0, at_most).unflatten(0, size)


def by_cell(values: Tensor) -> Tensor:
    """(B, C, h, w) to (B*h*w, C)."""
    return values.flatten(2).mT.flatten(0, 1)


def other_end(prediction: Prediction, sar: Tensor, optical: Tensor) -> tuple[Tensor, Tensor]:
    """`optical_cells` of each SAR cell's best displacement, (B*h*w,) each, counted through the batch.

    The images (B, C, h, w) are checked.
    """
    n, (height, width) = len(prediction.forward), prediction.forward.shape[-2:]
    for name, image in (("sar", sar), ("optical", optical)):
        if (len(image), *image.shape[2:]) != (n, height, width):
            raise ValueError(
                f"{name}: expected ({n}, C, {height}, {width}) beside its prediction, got {tuple(image.shape)}; take "
                "what the prediction was made of"
            )
    displacement = best(prediction.forward)[0]
    there, on_image = optical_cells(cell_grid(height, width, displacement.device), displacement, (height, width))
    first = torch.arange(n, device=there.device)[:, None, None] * (height * width)
    return (there + first).flatten(), on_image.flatten()
