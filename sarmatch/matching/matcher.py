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
import torch.nn.functional as F
from accelerate import PartialState
from torch import Tensor

from sarmatch.calibration.confidence import Confidence, calibrated, read_confidence, warn_of_missing_confidence
from sarmatch.calibration.position_error import COVERAGE, check_coverage
from sarmatch.config import SEARCH_RADIUS_PX
from sarmatch.data.crops import EvaluationCrops
from sarmatch.data.raster import Raster, check_same_grid, load_optical, load_sar
from sarmatch.geometry import Search, cell_valid, inside, transform_points, warp
from sarmatch.matching.aggregation import coarse_logits
from sarmatch.matching.assignment import predict
from sarmatch.matching.coarse_alignment import global_prior
from sarmatch.matching.correlation import Volume
from sarmatch.matching.matches import Matches
from sarmatch.matching.monte_carlo import predict_monte_carlo
from sarmatch.matching.refinement import RawMatches, pick_matches
from sarmatch.matching.robust_fit import RegistrationError, fit_affine
from sarmatch.matching.tiling import MULTIPLE, TILE, tile_seed, tiles
from sarmatch.model import STRIDE, PairEncoder, PairInput, SarOpticalNet, encode_pair, prepare
from sarmatch.model.checkpoints import load_weights

GLOBAL_SIDE = 2048  #: Largest side for the global stage, px: it holds descriptors of the whole image, about 3 GB.
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
    raw: RawMatches,
    confidence: Confidence | None,
    mode: str,
    search_radius: float | None,
    coverage: float = COVERAGE,
) -> Matches:
    """Matches with what `confidence.calibrated` makes of their raw scores."""
    arrays = {name: value.cpu().numpy() for name, value in raw._asdict().items()}
    rated = calibrated(arrays, confidence, mode, search_radius, coverage)
    del arrays["probability"]
    return Matches(**arrays | rated)


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
        self.device = PartialState().default_device if device == "auto" else _usable_device(device)
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
        raw = self._match(sar, optical, search, window)
        return apply(raw, self.confidence, self.mode, search.shift_radius, self.coverage)

    def match_crops(self, crops: EvaluationCrops, search_radius: float | None) -> Matches:
        """Match the crops of an evaluation protocol, with the prior knowledge that the protocol grants."""
        return self.match_rasters(*_of_crops(crops, search_radius))

    @property
    def mode(self) -> str:
        """Mode of inference, a key of `Confidence.calibrators`; the matcher without consensus has no calibration."""
        if not self.use_consensus:
            return "per cell"
        if self.mc_passes:
            as_fitted = self.confidence is None or self.mc_passes == self.confidence.mc_passes
            return "monte_carlo" if as_fitted else "single"
        return "distilled" if self.distilled else "single"

    def raw_matches(self, crops: EvaluationCrops, search_radius: float | None) -> RawMatches:
        """`match_crops` before calibration."""
        return self._match(*_of_crops(crops, search_radius))

    @torch.no_grad()
    def similarity_volumes(self, crops: EvaluationCrops, search_radius: float) -> tuple[Volume, Volume]:
        """Coarse logits over displacements with each cell by itself, and with consensus."""
        sar, optical = self.net(crops.sar[None].to(self.device), crops.optical[None].to(self.device))
        logits = partial(coarse_logits, self.net, sar, optical, search_radius)
        return logits(use_consensus=False), logits(use_consensus=True)

    @torch.no_grad()
    def _match(self, sar: Raster, optical: Raster, search: Search, window: int = 0) -> RawMatches:
        height, width = (max(a, b) for a, b in zip(sar.valid.shape, optical.valid.shape, strict=True))
        size = (height + -height % MULTIPLE, width + -width % MULTIPLE)
        (sar_in, sar_valid), (optical_in, optical_valid) = (_pad(r, size, self.device) for r in (sar, optical))
        images = (sar_in, optical_in, sar_valid, optical_valid)
        # Tiles overlap by half of their side at most: a wider search takes the global stage.
        widest = np.inf if max(size) <= TILE else TILE / 4
        if search.shift_radius is not None and search.shift_radius <= widest:
            return self._match_tiles(images, search.shift_radius, window)
        if max(size) > GLOBAL_SIDE:
            raise ValueError(
                f"images of {height} x {width} px: a search of the whole image, of rotation or scale, or beyond "
                f"{TILE // 4} px takes sides up to {GLOBAL_SIDE} px; give a smaller search_radius, or cut the images"
            )
        prior = global_prior(self.net, images, search)
        if search.turned:
            # The best of a few rotations is off by some degrees; a robust affine of first matches corrects it.
            one_pass = Matcher(self.net, self.device, self.use_consensus, encoders=self.encoders)
            prior = _refit(one_pass._match_warped(images, prior, window), prior)
        return self._match_warped(images, prior, window)

    def _match_warped(self, images: PairInput, prior: Tensor, window: int = 0) -> RawMatches:
        """Match around a predicted map by resampling the optical image onto the SAR grid with it."""
        sar, optical, sar_valid, optical_valid = images
        size = (sar.shape[-2], sar.shape[-1])
        moved = warp(optical, prior, size)
        moved_valid = warp(optical_valid[:, None].float(), prior, size)[:, 0] > 0.999
        raw = self._match_tiles((sar, moved, sar_valid, moved_valid), LOCAL_RADIUS, window)
        xy_optical = transform_points(prior, raw.xy_optical)
        linear = prior[:2, :2].to(raw.covariance)  # the covariance of A x is A C A^T
        raw = raw._replace(xy_optical=xy_optical, covariance=linear @ raw.covariance @ linear.T)
        return raw.select(inside(xy_optical, size))

    def _match_tiles(self, images: PairInput, search_radius: float, number: int = 0) -> RawMatches:
        """Match same-sized images tile by tile; each SAR cell is decided in the tile it lies deepest in."""
        sar, optical, *valid = images
        height, width = sar.shape[-2:]
        parts = []
        for window, core in tiles(height, width, margin=min(search_radius, TILE // 4)):
            masks = [mask[..., *window] for mask in valid]
            if not all(bool(cell_valid(mask, STRIDE).any()) for mask in masks):
                continue
            seed = tile_seed(self.mc_seed, number, window[1].start, window[0].start)
            raw = self.match_tile((sar[..., *window], optical[..., *window], masks[0], masks[1]), search_radius, seed)
            origin = raw.xy_sar.new_tensor([window[1].start, window[0].start])
            low, high = raw.xy_sar.new_tensor(core[:2]), raw.xy_sar.new_tensor(core[2:])
            xy_sar = raw.xy_sar + origin
            raw = raw._replace(xy_sar=xy_sar, xy_optical=raw.xy_optical + origin)
            parts.append(raw.select(((xy_sar >= low) & (xy_sar < high)).all(-1)))
        if not parts:
            empty, points = sar.new_zeros(0), sar.new_zeros(0, 2)
            return RawMatches(points, points, empty, empty, empty, sar.new_zeros(0, 2, 2))
        return RawMatches(*(torch.cat(values) for values in zip(*parts, strict=True)))

    def match_tile(self, images: PairInput, search_radius: float, seed: int | Sequence[int] = 0) -> RawMatches:
        """Match two images (1, C, H, W) of one tile with masks (1, H, W) of pixels."""
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
                prefixes = encoded[0].prefix, encoded[1].prefix
                prediction = predict_monte_carlo(net, *prefixes, search_radius, self.mc_passes, *masks, aggregate, seed)
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


def _usable_device(name: str | torch.device) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # unknown name, or a build or machine without it
        raise ValueError(f"device {str(name)!r} cannot be used here ({error}); take 'auto' or 'cpu'") from error
    return device


def _refit(matches: RawMatches, prior: Tensor) -> Tensor:
    """A robust affine of the matches, or the prior where they do not determine one."""
    try:
        fit = fit_affine(matches.xy_sar.cpu().numpy(), matches.xy_optical.cpu().numpy())
    except RegistrationError:
        return prior
    return torch.from_numpy(fit.matrix)


def _of_crops(crops: EvaluationCrops, search_radius: float | None) -> tuple[Raster, Raster, Search]:
    sar, optical = (crops.sar, crops.sar_valid), (crops.optical, crops.optical_valid)
    search = dataclasses.replace(crops.search, radius=search_radius)
    return Raster(*sar, None, None), Raster(*optical, None, None), search


def _pad(raster: Raster, size: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """A batch of one of the wanted size, its border repeated, and the mask of valid pixels (1, H, W)."""
    height, width = raster.valid.shape
    margin = (0, size[1] - width, 0, size[0] - height)
    image = F.pad(raster.image[None], margin, mode="replicate")
    return image.to(device), F.pad(raster.valid, margin)[None].to(device)
