"""Monte Carlo dropout: passes over one pair with dropout on and normalisation frozen (section 3.2.4).

What comes before the first dropout is computed once. The full-resolution descriptors, which only place the match within
its cell, come from the deterministic pass; passes are about which cell it is.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from sarmatch.matching.aggregation import pair_maps, volume_logits
from sarmatch.matching.assignment import Prediction, dual_log_softmax
from sarmatch.matching.correlation import Volume, coarse_similarity, coarse_valid
from sarmatch.model import STRIDE, Prefix, SarOpticalNet

PASSES_AT_ONCE = 1  #: In one batch on a CPU: larger ones are slower, since their volumes come from fresh pages.
PASSES_AT_ONCE_ON_GPU = 5  #: In one batch elsewhere, so that small maps fill the processor.
DROPOUTS = (nn.Dropout, nn.Dropout2d)


@contextmanager
def active_dropout(net: nn.Module, generators: Sequence[torch.Generator]) -> Iterator[None]:
    """Dropout active and everything else in evaluation mode; all as before afterwards.

    Args:
        generators: on the CPU, see `pass_generator`; sample i of every batch draws its masks from the ith, so that
            masks depend neither on the device nor on the size of batches.
    """

    def drop(module: nn.Dropout | nn.Dropout2d, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        (x,) = inputs
        if not module.p:
            return x
        if len(x) != len(generators):
            raise ValueError(f"a batch of {len(x)} needs as many generators of masks, got {len(generators)}")
        whole_channels = isinstance(module, nn.Dropout2d)
        shape = (x.shape[1], 1, 1) if whole_channels else x.shape[1:]
        kept = torch.stack([torch.rand(shape, generator=generator) for generator in generators]) >= module.p
        return x * (kept.to(x) / (1 - module.p))

    before = {module: module.training for module in net.modules()}
    net.eval()
    hooks = [module.register_forward_hook(drop) for module in before if isinstance(module, DROPOUTS)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in before.items():
            module.training = training


def pass_generator(seed: int | Sequence[int], number: int) -> torch.Generator:
    """What the masks of a pass are drawn from: a function of the seed (integers >= 0) and the pass's number."""
    entropy = (seed,) if isinstance(seed, int) else tuple(seed)
    state = np.random.SeedSequence([*entropy, number]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


# long because of its documented arguments
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
    seeds: Sequence[int | Sequence[int]] = (0,),
) -> Prediction:
    """Predictive mean, variance and mutual information of pairs over passes with dropout.

    Dropout zeroes whole channels, so a pass is one network for the whole image. The mutual information between a cell's
    displacement and the weights is the entropy of the mean less the mean entropy (row softmax).

    Args:
        sar, optical: what the encoders' `prefix` made of B images each.
        search_radius: px.
        passes: at least 1; the paper takes 20.
        sar_valid, optical_valid: (B, h, w) bool, cells that carry data; None takes all.
        seeds: of the masks of each pair, one integer or several.

    Raises:
        ValueError: fewer than one pass, or not a seed for each pair.
    """
    if passes < 1:
        raise ValueError(f"passes must be at least 1, got {passes}; a single deterministic pass is `predict`")
    if len(seeds) != (pairs := len(sar.image)):
        raise ValueError(f"seeds: expected one for each of {pairs} pairs, got {len(seeds)}")
    totals: list[Tensor] = []
    radius = math.ceil(search_radius / STRIDE)
    at_once = PASSES_AT_ONCE if sar.image.device.type == "cpu" else PASSES_AT_ONCE_ON_GPU
    for first in range(0, passes, at_once):
        batch = range(first, min(first + at_once, passes))
        with active_dropout(net, [pass_generator(seed, number) for number in batch for seed in seeds]):
            a = net.describe(net.sar_encoder.coarse(sar.repeat(len(batch))))
            b = net.describe(net.optical_encoder.coarse(optical.repeat(len(batch))))
            if first == 0 or len(batch) < at_once:  # otherwise it is that of the batch before
                valid = coarse_valid(a.coarse[:pairs], b.coarse[:pairs], radius, sar_valid, optical_valid)
                valid = valid if len(valid) == 1 else valid.repeat(len(batch), 1, 1, 1, 1)
            volume = Volume(coarse_similarity(a.coarse, b.coarse, radius).mul_(valid), valid)
            logits = volume_logits(net, volume, a, b, use_consensus)
            _add(totals, pairs, *dual_log_softmax(logits, search_radius), pair_maps(net, a, b))
    row, column, squares, entropy, *maps = (total.div_(passes) for total in totals)
    p_best, best = row.max(1)
    variance = (squares.gather(1, best[:, None])[:, 0] - p_best**2).clamp(min=0)
    log_row = _log(row)
    information = (row.mul_(log_row).sum(1).neg_() - entropy).clamp(min=0)
    return Prediction(log_row, _log(column), (maps[0], maps[1]) if maps else None, variance, information)


def _add(
    totals: list[Tensor], pairs: int, log_row: Tensor, log_column: Tensor, maps: tuple[Tensor, Tensor] | None
) -> None:
    """Add passes over `pairs` pairs to sums over passes, in place: a volume is large beside a processor's caches.

    Args:
        totals: of the row and of the column probabilities, of the squares of the former, (B, K*K, h, w) each; of the
            entropy, (B, h, w); and of the maps of the pairs where there are any, (B, h, w) each. Empty at first.
        log_row, log_column, maps: of all pairs in one pass, then all in the next.
    """
    row, column = log_row.exp(), log_column.exp_()
    entropy = log_row.mul_(row).sum(1).neg_()
    if not totals:
        totals.extend(torch.zeros_like(t[:pairs]) for t in (row, column, row, entropy, *(maps or ())))
    for one_pass in zip(*(t.split(pairs) for t in (row, column, entropy, *(maps or ()))), strict=True):
        row, column, entropy, *of_maps = one_pass
        totals[2].addcmul_(row, row)
        for total, part in zip((*totals[:2], *totals[3:]), (row, column, entropy, *of_maps), strict=True):
            total += part


def _log(probability: Tensor) -> Tensor:
    return probability.clamp(min=torch.finfo(probability.dtype).tiny).log_()
