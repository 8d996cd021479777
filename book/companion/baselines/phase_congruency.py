"""Phase congruency from log-Gabor filters: edges and corners whatever their contrast (Kovesi 1999, 2003)."""

import math
from typing import NamedTuple

import numpy as np
import scipy.fft

N_SCALES = 4
N_ORIENTATIONS = 6
_SHORTEST_PX = 3.0  # wavelength of the finest filter
_STEP = 2.1  # from each wavelength to the next
_SIGMA_ON_F = 0.55  # bandwidth of about two octaves
_THETA_SIGMA = math.pi / N_ORIENTATIONS / 1.2  # neighbouring orientations overlap so that all are covered evenly
_NOISE_SIGMAS = 2.0  # above the mean of what noise gives
_CUT_OFF, _GAIN = 0.5, 10.0  # of the weight of how many scales take part
_FLOOR = 0.01  # of the mean amplitude; far below it, congruency is that of rounding errors
_EPSILON = 1e-9


class PhaseCongruency(NamedTuple):
    """Moments of phase congruency over orientations."""

    edges: np.ndarray  #: (H, W), the largest moment, at least 0.
    corners: np.ndarray  #: (H, W), the smallest.
    amplitude: np.ndarray  #: (N_ORIENTATIONS, H, W) amplitudes of the filters, summed over scales.


def phase_congruency(image: np.ndarray) -> PhaseCongruency:
    """Phase congruency of a grey image (H, W)."""
    height, width = image.shape
    margin = int(_SHORTEST_PX * _STEP ** (N_SCALES - 1))  # else the filters wrap around to the opposite border
    padded = np.pad(image.astype(np.float64), margin, mode="symmetric")
    inner = (slice(margin, margin + height), slice(margin, margin + width))
    spectrum = scipy.fft.fft2(padded)
    radial, angular = _filters(padded.shape)
    responses = [scipy.fft.ifft2(spectrum * spread * radial)[:, *inner] for spread in angular]
    per_scale = [np.abs(each) for each in responses]
    amplitude = np.stack([each.sum(axis=0) for each in per_scale])
    floor = _FLOOR * amplitude.mean() + _EPSILON
    congruency = []
    for response, strengths, total in zip(responses, per_scale, amplitude, strict=True):
        width = (total / (strengths.max(axis=0) + _EPSILON) - 1) / (N_SCALES - 1)
        weight = 1 / (1 + np.exp((_CUT_OFF - width) * _GAIN))  # low for one scale alone, which is always congruent
        congruency.append(_energy(response, strengths) * weight / (total + floor))
    edges, corners = _moments(np.stack(congruency))
    return PhaseCongruency(edges, corners, amplitude)


def _filters(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Log-Gabor filters in frequency: (N_SCALES, H, W) radial and (N_ORIENTATIONS, H, W) angular, one-sided."""
    fy, fx = np.meshgrid(*(scipy.fft.fftfreq(n) for n in size), indexing="ij")
    radius, angle = np.hypot(fx, fy), np.arctan2(fy, fx)
    radius[0, 0] = 1.0
    low_pass = 1 / (1 + (radius / 0.45) ** 30)  # drops the corners of the spectrum
    centres = [1 / (_SHORTEST_PX * _STEP**scale) for scale in range(N_SCALES)]
    radial = np.stack([np.exp(-(np.log(radius / f) ** 2) / (2 * math.log(_SIGMA_ON_F) ** 2)) for f in centres])
    radial *= low_pass
    radial[:, 0, 0] = 0.0
    turned = angle - np.pi * np.arange(N_ORIENTATIONS)[:, None, None] / N_ORIENTATIONS
    away = np.arctan2(np.sin(turned), np.cos(turned))
    return radial, np.exp(-(away**2) / (2 * _THETA_SIGMA**2))


def _energy(responses: np.ndarray, per_scale: np.ndarray) -> np.ndarray:
    """Local energy of one orientation above noise: how far all scales point along their mean phase."""
    mean = responses.sum(axis=0)
    mean = mean / (np.abs(mean) + _EPSILON)
    along = responses * mean.conj()
    energy = (along.real - np.abs(along.imag)).sum(axis=0)
    # Amplitudes of noise are Rayleigh distributed; the finest scale is mostly noise, the others follow in proportion.
    tau = np.median(per_scale[0]) / math.sqrt(math.log(4))
    total = tau * (1 - _STEP**-N_SCALES) / (1 - 1 / _STEP)
    threshold = total * (math.sqrt(math.pi / 2) + _NOISE_SIGMAS * math.sqrt((4 - math.pi) / 2))
    return np.maximum(energy - threshold, 0)


def _moments(congruency: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Largest and smallest moment of (N_ORIENTATIONS, H, W) phase congruency."""
    angles = np.pi * np.arange(N_ORIENTATIONS)[:, None, None] / N_ORIENTATIONS
    x, y = congruency * np.cos(angles), congruency * np.sin(angles)
    xx, yy, xy = (2 * (a * b).sum(axis=0) / N_ORIENTATIONS for a, b in ((x, x), (y, y), (x, y)))
    half = np.hypot(2 * xy, xx - yy) / 2
    return (xx + yy) / 2 + half, np.maximum((xx + yy) / 2 - half, 0)
