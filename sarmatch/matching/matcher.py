"""Matching two images with a trained network: `load_matcher(...).match(sar, optical)`."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor

from sarmatch.calibration.confidence import Confidence, calibrated, read_confidence, warn_of_missing_confidence
from sarmatch.calibration.position_error import COVERAGE, check_coverage
from sarmatch.config import SEARCH_RADIUS_PX
from sarmatch.data.crops import EvaluationCrops
from sarmatch.data.raster import Raster, check_same_grid, load_optical, load_sar
from sarmatch.geometry import Search, inside, transform_points
from sarmatch.matching.aggregation import coarse_logits
from sarmatch.matching.assignment import predict
from sarmatch.matching.coarse_alignment import global_prior
from sarmatch.matching.correlation import Volume
from sarmatch.matching.inputs import batch_of_one, crop_rasters, crop_search, resampled, usable_device
from sarmatch.matching.matches import Matches
from sarmatch.matching.monte_carlo import predict_monte_carlo
from sarmatch.matching.refinement import RawMatches, pick_matches
from sarmatch.matching.robust_fit import RegistrationError, fit_affine
from sarmatch.matching.tiling import TILE, Tile, tile_seed, tiles
from sarmatch.model import PairEncoder, PairInput, SarOpticalNet, encode_pair, prepare
from sarmatch.model.checkpoints import load_weights

GLOBAL_SIDE = 2048  #: Largest side for the global stage, px: it holds descriptors of the whole image, about 3 GB.
TILES_AT_ONCE, TILES_AT_ONCE_ON_GPU = 1, 16  #: In one batch; on a CPU larger ones only leave its caches.
LOCAL_RADIUS = 16.0  #: Search radius around a prior that the coarse global stage found, px.
WEIGHTS = Path(__file__).parents[1] / "weights"


def load_matcher(
    source: str | Path,
    device: str = "auto",
    use_consensus: bool = True,
    mc_passes: int = 0,
    distilled: bool = False,
    coverage: float = COVERAGE,
    onnx: str | Path | None = None,
    mc_seed: int = 0,
) -> Matcher:
    """A matcher from shipped weights, a run folder or a safetensors file; warns if no confidence was fitted for them.

    Args:
        source: name of shipped weights, folder with `model.safetensors`, or path of such a file.
        onnx: file of `sarmatch export` of the same weights, whose encoders ONNX Runtime then runs.
        device, use_consensus, mc_passes, distilled, coverage, mc_seed: as for `Matcher`.

    Raises:
        FileNotFoundError: nothing of that name.
        ValueError: an ONNX file of other weights.
    """
    candidates = [WEIGHTS / f"{source}.safetensors", Path(source) / "model.safetensors", Path(source)]
    path = next((c for c in candidates if c.is_file()), None)
    if path is None:
        shipped = sorted(p.stem for p in WEIGHTS.glob("*.safetensors"))
        raise FileNotFoundError(
            f"no weights {str(source)!r}: expected a name among {shipped}, a run folder with model.safetensors, or "
            "a .safetensors file; train some with `sarmatch train`"
        )
    net, about = load_weights(path)
    confidence = Confidence.from_json(about["confidence"]) if "confidence" in about else read_confidence(path.parent)
    if confidence is None:
        warn_of_missing_confidence(str(path))
    encoders = None
    if onnx is not None:
        from sarmatch.model.onnx import OnnxEncoders

        encoders = OnnxEncoders(onnx)
        encoders.check(net)
    return Matcher(net, device, use_consensus, mc_passes, confidence, distilled, coverage, encoders, mc_seed)


def apply(
    raw: RawMatches, confidence: Confidence | None, mode: str, search_radius: float | None, coverage: float = COVERAGE
) -> Matches:
    """Matches with what `confidence.calibrated` makes of their raw scores."""
    arrays = raw.columns()
    rated = calibrated(arrays, confidence, mode, search_radius, coverage)
    kept: dict[str, Any] = {name: arrays[name] for name in ("xy_sar", "xy_optical", "aleatoric", "epistemic")}
    return Matches(**kept | rated)


class Matcher:
    """A trained network and the device it runs on.

    Args:
        net: not changed; where it lies on another device or trains, the matcher works on a copy.
        device: `auto` takes CUDA or Apple's MPS where there is one, else the CPU.
        use_consensus: False gives the paper-literal matcher, each cell by itself.
        mc_passes: passes with dropout (section 3.2.4 takes 20); 0 makes one deterministic pass.
        confidence: turns raw scores into the calibrated probability of lying within 3 px and decides whether images
            overlap; None leaves the raw dual-softmax probability. It was fitted for shifts within one search radius:
            elsewhere the probability is an extrapolation, and nothing is decided.
        distilled: estimate the epistemic uncertainty of one pass by the network's distilled head.
        coverage: share of matches whose true position is to lie within their `radius`.
        encoders: run instead of the network's own (`sarmatch.model.onnx.OnnxEncoders`), but for the global stage.
        mc_seed: of the dropout masks, at least 0; they do not depend on the device.
    """

    def __init__(
        self,
        net: SarOpticalNet,
        device: str | torch.device = "auto",
        use_consensus: bool = True,
        mc_passes: int = 0,
        confidence: Confidence | None = None,
        distilled: bool = False,
        coverage: float = COVERAGE,
        encoders: PairEncoder | None = None,
        mc_seed: int = 0,
    ) -> None:
        self.device = PartialState().default_device if device == "auto" else usable_device(device)
        self.net = _in_evaluation(net, self.device)
        self.use_consensus = use_consensus
        self.mc_passes, self.mc_seed = _not_negative("mc_passes", mc_passes), _not_negative("mc_seed", mc_seed)
        if distilled and not net.epistemic_head.distilled:
            raise ValueError(
                "distilled=True needs a network whose epistemic_head was distilled; see `training.distillation.distil`"
            )
        self.confidence, self.distilled = confidence, distilled
        self.coverage = check_coverage(coverage)
        if encoders is not None and mc_passes:
            raise ValueError(f"mc_passes={mc_passes} draw dropout inside the encoders, exported ones have none; take 0")
        self.encoders = encoders

    def match(
        self,
        sar: Any,
        optical: Any,
        search_radius: float | None = SEARCH_RADIUS_PX,
        max_rotation_deg: float = 0.0,
        scale_range: tuple[float, float] = (1.0, 1.0),
        mc_passes: int | None = None,
        mc_seed: int | None = None,
    ) -> Matches:
        """Tie points between two images on one grid, up to a shift within the search radius.

        Args:
            sar: (H, W) or (1 or 2, H, W) array or tensor in 8 bits, dB or [0, 1]; or a path or open rasterio dataset.
            optical: (H, W, 3) or (3 or 13, H, W) in 8 bits, reflectance x 10,000 or [0, 1]; or as above.
            search_radius, max_rotation_deg, scale_range: see `Search`.
            mc_passes: passes with dropout instead of the matcher's own number; `epistemic` is NaN without any.
            mc_seed: of their masks instead of the matcher's own.

        Raises:
            ValueError: arrays of unusable shape, dtype or range.
            FileNotFoundError, PairError: files that cannot be read, or that lie on different grids.
        """
        search = Search(search_radius, max_rotation_deg, scale_range)
        passes = self.mc_passes if mc_passes is None else mc_passes
        seed = self.mc_seed if mc_seed is None else mc_seed
        if (passes, seed) != (self.mc_passes, self.mc_seed):
            rest = (self.confidence, self.distilled, self.coverage, self.encoders, seed)
            other = Matcher(self.net, self.device, self.use_consensus, passes, *rest)
            return other.match(sar, optical, search_radius, max_rotation_deg, scale_range)
        net = self.net.config
        first, second = load_sar(sar, net.sar_channels), load_optical(optical, net.optical_channels)
        if first.transform is not None and second.transform is not None:
            check_same_grid(first, second, "SAR image", "optical image")
        matches = self.match_rasters(first, second, search)
        of_sar = {"sar_transform": first.transform, "sar_crs": first.crs}
        of_optical = {"optical_transform": second.transform, "optical_crs": second.crs}
        return dataclasses.replace(matches, **of_sar, **of_optical)

    def match_rasters(self, sar: Raster, optical: Raster, search: Search, window: int = 0) -> Matches:
        """The same of images already read and scaled, without their georeference.

        Args:
            window: number of these images among the windows of larger ones; each draws its own dropout masks.
        """
        return self._calibrated(self._match([(sar, optical)], search, [window])[0], search)

    def match_batch(
        self, pairs: Sequence[tuple[Raster, Raster]], search: Search, windows: Sequence[int] | None = None
    ) -> list[Matches]:
        """`match_rasters` of many pairs; those of one size go through the network together."""
        found = self._match(pairs, search, [0] * len(pairs) if windows is None else windows)
        return [self._calibrated(raw, search) for raw in found]

    def match_crops(self, crops: EvaluationCrops, search_radius: float | None) -> Matches:
        """Match the crops of an evaluation protocol, with the prior knowledge that the protocol grants."""
        return self.match_all_crops([crops], search_radius)[0]

    def match_all_crops(self, crops: Sequence[EvaluationCrops], search_radius: float | None) -> list[Matches]:
        """`match_crops` of a batch under one protocol."""
        search = crop_search(crops[0], search_radius)
        return self.match_batch([crop_rasters(one) for one in crops], search)

    def _calibrated(self, raw: RawMatches, search: Search) -> Matches:
        return apply(raw, self.confidence, self.mode, search.shift_radius, self.coverage)

    @property
    def mode(self) -> str:
        """Mode of inference, a key of `Confidence.calibrators`; the matcher without consensus has no calibration."""
        if not self.use_consensus:
            return "per cell"
        if self.mc_passes:
            as_fitted = self.confidence is None or self.mc_passes == self.confidence.mc_passes
            return "monte_carlo" if as_fitted else "single"
        return "distilled" if self.distilled else "single"

    @property
    def at_once(self) -> int:
        """Tiles that go through the network together."""
        return TILES_AT_ONCE if self.device.type == "cpu" else TILES_AT_ONCE_ON_GPU

    def raw_matches(self, crops: EvaluationCrops, search_radius: float | None) -> RawMatches:
        """`match_crops` before calibration."""
        return self._match([crop_rasters(crops)], crop_search(crops, search_radius), [0])[0]

    @torch.no_grad()
    def similarity_volumes(self, crops: EvaluationCrops, search_radius: float) -> tuple[Volume, Volume]:
        """Coarse logits over displacements with each cell by itself, and with consensus."""
        sar, optical = self.net(crops.sar[None].to(self.device), crops.optical[None].to(self.device))
        logits = partial(coarse_logits, self.net, sar, optical, search_radius)
        return logits(use_consensus=False), logits(use_consensus=True)

    @torch.no_grad()
    def _match(
        self, pairs: Sequence[tuple[Raster, Raster]], search: Search, windows: Sequence[int]
    ) -> list[RawMatches]:
        cudnn = torch.backends.cudnn
        as_set = {"enabled": cudnn.enabled, "benchmark": cudnn.benchmark, "deterministic": cudnn.deterministic}
        with cudnn.flags(**as_set, allow_tf32=False):  # its 10 bits could shift positions by tenths of a px
            inputs = [batch_of_one(*pair, self.device) for pair in pairs]
            largest = max((side for images in inputs for side in images[0].shape[-2:]), default=0)
            # Tiles overlap by half of their side at most: a wider search takes the global stage.
            widest = np.inf if largest <= TILE else TILE / 4
            if search.shift_radius is not None and search.shift_radius <= widest:
                return self._match_tiles(inputs, search.shift_radius, windows)
            if largest > GLOBAL_SIDE:
                raise ValueError(
                    f"images of {largest} px: a search of the whole image, of rotation or scale, or beyond {TILE // 4} "
                    f"px takes sides up to {GLOBAL_SIDE} px; give a smaller search_radius, or cut the images"
                )
            priors = [global_prior(self.net, images, search) for images in inputs]
            if search.turned:
                # The best of a few rotations is off by some degrees; a robust affine of first matches corrects it.
                one_pass = Matcher(self.net, self.device, self.use_consensus, encoders=self.encoders)
                first = one_pass._match_warped(inputs, priors, windows)
                priors = [_refit(raw, prior) for raw, prior in zip(first, priors, strict=True)]
            return self._match_warped(inputs, priors, windows)

    def _match_warped(
        self, inputs: Sequence[PairInput], priors: Sequence[Tensor], windows: Sequence[int]
    ) -> list[RawMatches]:
        """Match around predicted maps by resampling the optical images onto the SAR grids with them."""
        moved = [resampled(images, prior) for images, prior in zip(inputs, priors, strict=True)]
        results = []
        for raw, prior, images in zip(self._match_tiles(moved, LOCAL_RADIUS, windows), priors, inputs, strict=True):
            linear = prior[:2, :2].to(raw.covariance)  # the covariance of A x is A C A^T
            xy_optical, covariance = transform_points(prior, raw.xy_optical), linear @ raw.covariance @ linear.T
            on_image = inside(xy_optical, (images[1].shape[-2], images[1].shape[-1]))
            results.append(raw._replace(xy_optical=xy_optical, covariance=covariance).select(on_image))
        return results

    def _match_tiles(
        self, inputs: Sequence[PairInput], search_radius: float, numbers: Sequence[int]
    ) -> list[RawMatches]:
        """Match images tile by tile; each SAR cell is decided in the tile it lies deepest in."""
        jobs: dict[tuple[int, int], list[tuple[int, Tile]]] = {}
        for k, (sar, *_) in enumerate(inputs):
            for tile in tiles(sar.shape[-2], sar.shape[-1], margin=min(search_radius, TILE // 4)):
                cut = sar[..., *tile[0]]
                jobs.setdefault((cut.shape[-2], cut.shape[-1]), []).append((k, tile))
        parts: list[list[RawMatches]] = [[] for _ in inputs]
        for same_size in jobs.values():
            for batch in (same_size[i : i + self.at_once] for i in range(0, len(same_size), self.at_once)):
                sar, optical, sar_valid, optical_valid = (
                    torch.cat([inputs[k][part][..., *window] for k, (window, _) in batch]) for part in range(4)
                )
                seeds = [tile_seed(self.mc_seed, numbers[k], w[1].start, w[0].start) for k, (w, _) in batch]
                found = self.match_tiles((sar, optical, sar_valid, optical_valid), search_radius, seeds)
                for (k, tile), raw in zip(batch, found, strict=True):
                    parts[k].append(_placed(raw, tile))
        return [RawMatches(*(torch.cat(values) for values in zip(*of_pair, strict=True))) for of_pair in parts]

    def match_tiles(
        self, images: PairInput, search_radius: float, seeds: Sequence[int | Sequence[int]] = (0,)
    ) -> list[RawMatches]:
        """Match pairs (B, C, H, W) of one tile each with masks (B, H, W) of pixels and seeds of dropout masks."""
        net, aggregate = self.net, self.use_consensus and bool(self.net.config.consensus_cells)
        prediction = None
        if self.encoders is not None:
            a, b = prepare(images[0], images[2]), prepare(images[1], images[3])
            first, second = self.encoders(a[0], b[0], a[2], b[2])
            masks = a[1], b[1]
        else:
            encoded = encode_pair(net, images)
            first, second = (image.descriptors for image in encoded)
            masks = encoded[0].valid, encoded[1].valid
            if self.mc_passes:
                both = encoded[0].prefix, encoded[1].prefix
                prediction = predict_monte_carlo(net, *both, search_radius, self.mc_passes, *masks, aggregate, seeds)
        if prediction is None:
            prediction = predict(net, first, second, search_radius, *masks, aggregate)
        if self.distilled and not self.mc_passes:
            from sarmatch.matching.epistemic import attach, distilled_information

            prediction = attach(prediction, distilled_information(net, prediction, first, second))
        return pick_matches(net, prediction, first.fine, second.fine, *masks, aggregate)


def _not_negative(name: str, value: int) -> int:
    if value < 0:
        raise ValueError(f"{name} must not be negative, got {value}; take 0 or more")
    return value


def _in_evaluation(net: SarOpticalNet, device: torch.device) -> SarOpticalNet:
    """The network itself if it lies on the device and evaluates, else a copy that does."""
    places = {t.device for t in net.state_dict().values()}
    index = torch.cuda.current_device() if device.type == "cuda" and device.index is None else device.index
    there = all(p.type == device.type and index in (None, p.index) for p in places)
    if there and not any(module.training for module in net.modules()):
        return net
    return copy.deepcopy(net).to(device).eval()


def _refit(matches: RawMatches, prior: Tensor) -> Tensor:
    """A robust affine of the matches, or the prior where they do not determine one."""
    try:
        fit = fit_affine(matches.xy_sar.cpu().numpy(), matches.xy_optical.cpu().numpy())
    except RegistrationError:
        return prior
    return torch.from_numpy(fit.matrix)


def _placed(raw: RawMatches, tile: Tile) -> RawMatches:
    """The matches of a tile in the core of it, px of the whole image."""
    window, core = tile
    origin = raw.xy_sar.new_tensor([window[1].start, window[0].start])
    xy_sar = raw.xy_sar + origin
    inside_core = (xy_sar >= raw.xy_sar.new_tensor(core[:2])) & (xy_sar < raw.xy_sar.new_tensor(core[2:]))
    return raw._replace(xy_sar=xy_sar, xy_optical=raw.xy_optical + origin).select(inside_core.all(-1))
