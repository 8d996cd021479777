"""Training crops with a known relative transform, and their radiometry (section 4.2).

Public pairs are co-registered, and a padded convolution can encode absolute position: with an identity truth a network
can match without content. So both images of a sample are cut from the pair by different affine maps. A sample is a
function of (seed, epoch, position) alone: a resumed run and any number of loaders and devices get the same samples.
"""

from typing import NamedTuple, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from sarmatch.config import DataConfig
from sarmatch.data.pairs import Pair, Pairs
from sarmatch.geometry import (
    Search,
    TrueMap,
    central_corner,
    coverage,
    inside,
    rotation_scale,
    smooth_field,
    transform_points,
    translation,
    warp,
)

HAZE_BRIGHTNESS = 0.9


class Sample(TypedDict):
    """A training sample; the truth is `TrueMap(A_sar_to_optical, field)`, masks are (c, c) bool."""

    sar: Tensor
    optical: Tensor
    sar_valid: Tensor
    optical_valid: Tensor
    A_sar_to_optical: Tensor  # (3, 3) float32, px of the crops
    field: Tensor  # (2, c, c) float32, px; zero where the crop is not bent


class TrainingCrops(Dataset[Sample]):
    """Random crops of pairs of at least `config.crop_size` px a side; `cache` keeps decoded pairs in memory."""

    def __init__(self, pairs: Pairs, config: DataConfig, seed: int, cache: bool = False) -> None:
        self.pairs, self.config, self.seed = pairs, config, seed
        twice = pairs.index["dataset"].isin(config.drawn_twice).to_numpy()
        self.rows = np.concatenate([np.arange(len(pairs)), np.flatnonzero(twice)])  # of the pair at each position
        self._cache: dict[int, tuple[Pair, Tensor | None]] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """The sample of an (epoch, position)."""
        epoch, i = key
        rng = np.random.default_rng((self.seed, epoch, i))
        pair, later = self._load(int(self.rows[i]))
        sar = pair.sar
        if later is not None and rng.random() < self.config.later_sar_probability:
            sar = later
        sar_to_pair, optical_to_pair = random_maps(pair.size, self.config, rng)
        size = (self.config.crop_size, self.config.crop_size)
        field = random_field(size, self.config, rng)
        optical = warp(pair.optical, optical_to_pair, size, field=field)
        return Sample(
            sar=sar_radiometry(warp(sar, sar_to_pair, size), self.config, rng),
            optical=optical_radiometry(optical, self.config, rng),
            sar_valid=coverage(pair.valid, sar_to_pair, size),
            optical_valid=coverage(pair.valid, optical_to_pair, size, field),
            A_sar_to_optical=(torch.linalg.inv(optical_to_pair) @ sar_to_pair).float(),
            field=torch.zeros(2, *size) if field is None else field,
        )

    def _load(self, row: int) -> tuple[Pair, Tensor | None]:
        if self._cache is None:
            return self.pairs[row], self.pairs.later_sar(row)
        if row not in self._cache:
            self._cache[row] = (self.pairs[row], self.pairs.later_sar(row))
        return self._cache[row]


def random_maps(size: tuple[int, int], config: DataConfig, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Affine maps from the SAR crop and from the optical crop to the pair, two (3, 3) float64 in px.

    Both share a rotation, a mirror and a centre; the optical crop is further shifted, turned and scaled. Maps are drawn
    again until both crops lie inside the pair; where that fails, the SAR crop is a plain window at the centre and the
    shift is what the pair leaves room for.
    """
    height, width = size
    crop = config.crop_size
    middle = (crop - 1) / 2
    corners = torch.tensor([[0.0, 0], [crop - 1, 0], [0, crop - 1], [crop - 1, crop - 1]], dtype=torch.float64)
    flip = bool(rng.random() < config.flip_probability)
    stays = rng.random() < 0.5  # half of the samples stay on the pixel grid, as the images at inference do
    for _ in range(20):
        turn = 0.0 if stays else config.joint_rotation_deg * rng.uniform(-1, 1)
        low, high = np.log(config.pixel_scale)
        pixel = 1.0 if low == high == 0 else float(np.exp(rng.uniform(low, high)))
        joint = rotation_scale(turn, pixel, (middle, middle), flip)
        x, y = float(rng.integers(0, width - crop + 1)), float(rng.integers(0, height - crop + 1))
        sar_to_pair = translation(x, y) @ joint
        shift = rng.uniform(-config.relative_shift_px, config.relative_shift_px, 2)
        amount = 0.0 if rng.random() < config.pure_shift_probability else 1.0
        angle = amount * config.relative_rotation_deg * rng.uniform(-1, 1)
        scale = float(np.exp(amount * config.relative_log_scale * rng.uniform(-1, 1)))
        relative = translation(*shift) @ rotation_scale(angle, scale, (middle, middle))
        optical_to_pair = sar_to_pair @ relative
        both = torch.cat([transform_points(m, corners) for m in (sar_to_pair, optical_to_pair)])
        if bool(inside(both, size).all()):
            return sar_to_pair, optical_to_pair
    x, y = central_corner(size, crop)
    room = min(x, y, config.relative_shift_px)
    shift = rng.uniform(-room, room, 2)
    plain = translation(x, y) @ rotation_scale(0.0, 1.0, (middle, middle), flip)
    return plain, plain @ translation(*shift)


def random_field(size: tuple[int, int], config: DataConfig, rng: np.random.Generator) -> Tensor | None:
    """The displacement field that bends an optical crop, (2, *size) px, or None for those that stay straight."""
    if not happens(config.deformation_probability, rng):
        return None
    low, high = np.log(config.deformation_sigma_px)
    return smooth_field(size, rng.uniform(0, config.deformation_px), float(np.exp(rng.uniform(low, high))), rng)


def happens(probability: float, rng: np.random.Generator) -> bool:
    """A draw; none is taken where it never happens, so that what was added later leaves older samples as they were."""
    return probability > 0 and bool(rng.random() < probability)


def sar_radiometry(sar: Tensor, config: DataConfig, rng: np.random.Generator) -> Tensor:
    """Contrast, artificial speckle and Gaussian noise on a SAR crop (C, H, W) in [0, 1]."""
    sar = sar.clamp(0, 1) ** float(np.exp(rng.uniform(-0.4, 0.4)))
    if rng.random() < config.speckle_probability:
        low, high = np.log(config.speckle_looks)
        speckled = speckle(sar, float(np.exp(rng.uniform(low, high))), rng)
        sar = torch.lerp(sar, speckled, part(sar, rng)) if happens(config.partial_probability, rng) else speckled
    return _noise(sar * float(rng.uniform(0.8, 1.2)), config.noise_std, rng)


def speckle(sar: Tensor, looks: float, rng: np.random.Generator) -> Tensor:
    """Multiply an amplitude image by fully developed speckle of a number of looks (>= 1): gamma-distributed power."""
    power = rng.gamma(looks, 1 / looks, size=tuple(sar.shape)).astype(np.float32)
    return sar * torch.from_numpy(np.sqrt(power))


def part(image: Tensor, rng: np.random.Generator) -> Tensor:
    """How much of a nuisance each pixel of an image (C, H, W) has: one on a random side of soft edges, else zero."""
    size = (image.shape[-2], image.shape[-1])
    field = smooth_field(size, 1.0, rng.uniform(0.1, 0.3) * max(size), rng)[0]
    return torch.sigmoid(12 * (field / field.abs().max() - float(rng.uniform(-0.3, 0.3))))


def optical_radiometry(optical: Tensor, config: DataConfig, rng: np.random.Generator) -> Tensor:
    """Band mixing, haze, contrast, brightness and Gaussian noise on an optical crop (C, H, W) in [0, 1]."""
    if rng.random() < config.band_mixing:
        optical = mix_bands(optical, rng)
    if rng.random() < config.haze_probability:
        hazy = haze(optical, float(rng.uniform(0.1, 0.9)), rng)
        optical = torch.lerp(optical, hazy, part(optical, rng)) if happens(config.partial_probability, rng) else hazy
    if happens(config.cloud_probability, rng):
        optical = torch.lerp(optical, torch.full_like(optical, HAZE_BRIGHTNESS), part(optical, rng))
    optical = optical.clamp(0, 1) ** float(np.exp(rng.uniform(-0.4, 0.4)))
    optical = optical * float(rng.uniform(0.7, 1.3)) + float(rng.uniform(-0.1, 0.1))
    return _noise(optical, config.noise_std, rng)


def haze(optical: Tensor, density: float, rng: np.random.Generator) -> Tensor:
    """Veil an image (C, H, W) in [0, 1] with bright haze whose opacity varies smoothly between 0 and `density`."""
    size = optical.shape[-2:]
    coarse = torch.from_numpy(rng.random((1, 1, 4, 4), dtype=np.float32))  # wide against a descriptor's window
    field = F.interpolate(coarse, size, mode="bicubic", align_corners=True)[0]
    low, high = field.min(), field.max()
    opacity = density * (field - low) / (high - low).clamp(min=1e-6)
    return optical + opacity * (HAZE_BRIGHTNESS - optical)


def mix_bands(optical: Tensor, rng: np.random.Generator) -> Tensor:
    """Grey the image, swap its bands, or mix them at random: false and true colour must both be matched."""
    bands = len(optical)
    kind = rng.integers(3)
    if kind == 0:
        matrix = np.tile(rng.dirichlet(np.ones(bands)), (bands, 1))
    elif kind == 1:
        matrix = np.eye(bands)[rng.permutation(bands)]
    else:
        matrix = rng.dirichlet(np.ones(bands), size=bands)
    return torch.einsum("ij,jhw->ihw", torch.from_numpy(matrix).float(), optical)


def _noise(image: Tensor, std: float, rng: np.random.Generator) -> Tensor:
    noise = rng.standard_normal(tuple(image.shape), dtype=np.float32) * np.float32(std)
    return (image + torch.from_numpy(noise)).clamp(0, 1)


class EvaluationCrops(NamedTuple):
    """Two crops of a pair and the truth between them; images (C, c, c), masks (c, c)."""

    sar: Tensor
    optical: Tensor
    sar_valid: Tensor
    optical_valid: Tensor
    A_sar_to_optical: Tensor  # (3, 3), px; under `deform` followed by the displacement of `field`
    search: Search = Search(None)  # how far the protocol turns and scales; its radius is the caller's
    field: Tensor | None = None  # (2, c, c) px under `deform`

    @property
    def truth(self) -> TrueMap:
        """Where places of the SAR crop lie in the optical crop."""
        return TrueMap(self.A_sar_to_optical[None], None if self.field is None else self.field[None])
