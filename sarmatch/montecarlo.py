"""Monte Carlo dropout: passes over one pair with dropout on and normalisation frozen (section 3.2.4).

What comes before the first dropout is computed once. The full-resolution descriptors, which only place the match within
its cell, come from the deterministic pass; passes are about which cell it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sarmatch.matching import Prediction, predict
from sarmatch.models import DenseEncoder, Descriptors, Prefix, SarOpticalNet
from sarmatch.models.encoder import Encoding

PASSES_AT_ONCE = 5
"""Passes in one batch: enough to fill a processor, few enough for its caches."""
DROPOUTS = (nn.Dropout, nn.Dropout2d)


@contextmanager
def active_dropout(net: nn.Module, seed: int) -> Iterator[None]:
    """Dropout active and everything else in evaluation mode; masks follow from the seed; all as before afterwards."""
    before = {module: module.training for module in net.modules()}
    net.eval()
    for module in net.modules():
        if isinstance(module, DROPOUTS):
            module.train()
    devices = {p.device for p in net.parameters() if p.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=list(devices)):
            torch.manual_seed(seed)
            yield
    finally:
        for module, training in before.items():
            module.training = training


@torch.no_grad()
def predict_monte_carlo(
    net: SarOpticalNet,
    sar: Prefix,
    optical: Prefix,
    search_radius: float,
    passes: int,
    sar_valid: Tensor | None = None,
    optical_valid: Tensor | None = None,
    use_consensus: bool = True,
    seed: int = 0,
) -> Prediction:
    """Predictive mean, variance and mutual information of one pair over passes with dropout.

    Dropout zeroes whole channels, so that a pass is one network for the whole image. The mutual information between a
    cell's displacement and the weights is the entropy of the mean less the mean entropy (row softmax).

    Args:
        sar, optical: what the encoders' `prefix` made of one image each.
        search_radius: px.
        passes: number of passes, at least 1; the paper takes 20.
        sar_valid, optical_valid: (1, h, w) bool, cells that carry data; None takes all.
        seed: of the masks; the same seed gives the same result.

    Raises:
        ValueError: fewer than one pass.
    """
    if passes < 1:
        raise ValueError(f"passes must be at least 1, got {passes}; a single deterministic pass is `predict`")
    with active_dropout(net, seed):
        sums: list[Tensor] = []
        for first in range(0, passes, PASSES_AT_ONCE):
            n = min(PASSES_AT_ONCE, passes - first)
            dropped = _dropped(net, net.sar_encoder, sar, n), _dropped(net, net.optical_encoder, optical, n)
            parts = _moments(predict(net, *dropped, search_radius, sar_valid, optical_valid, use_consensus))
            sums = [a + b for a, b in zip(sums, parts, strict=True)] if sums else parts
    row, column, squares, entropy, *maps = (total / passes for total in sums)
    p_best, best = row.max(1)
    variance = (squares.gather(1, best[:, None])[:, 0] - p_best**2).clamp(min=0)
    information = (_entropy(row) - entropy[:, 0]).clamp(min=0)
    return Prediction(_log(row), _log(column), (maps[0], maps[1]) if maps else None, variance, information)


def _dropped(net: SarOpticalNet, encoder: DenseEncoder, prefix: Prefix, n: int) -> Descriptors:
    """Descriptors of n passes over one image, each with masks of its own; without the fine level."""
    features = encoder.trunk(tuple(x.expand(n, -1, -1, -1) for x in prefix.maps))
    uncertainty = encoder.uncertainty(features) if encoder.uncertainty else None
    return net.describe(Encoding(features, features[:, :0], uncertainty))


def _moments(passes: Prediction) -> list[Tensor]:
    """Sums over passes of the row and column probabilities, of their squares, of the entropy, and of the pair maps."""
    row, column = passes.forward.exp(), passes.backward.exp()
    parts = [row, column, row**2, -(row * passes.forward).sum(1, keepdim=True), *(passes.pair_maps or ())]
    return [part.sum(0, keepdim=True) for part in parts]


def _entropy(probability: Tensor) -> Tensor:
    """Of a distribution over axis 1, nats."""
    return -(probability * _log(probability)).sum(1)


def _log(probability: Tensor) -> Tensor:
    return probability.clamp(min=torch.finfo(probability.dtype).tiny).log()
