"""Data: one contract for co-registered SAR-optical pairs, and readers that fulfil it.

`open_pairs` is the door: it chooses the reader by the config. A reader returns `Pairs`: an index table with one row a
pair, and the pairs themselves, read when asked for.
"""

from __future__ import annotations

from sarmatch.config import DataConfig
from sarmatch.data.folder import manifest
from sarmatch.data.pairs import INDEX_COLUMNS, Pair, PairError, Pairs
from sarmatch.data.raster import Raster, read_optical, read_pair, read_sar
from sarmatch.data.splits import Split, leakage, split_by_patch, split_by_scene, split_pairs
from sarmatch.data.synthetic import Nuisance, render, render_pair, synthetic_pairs

__all__ = [
    "INDEX_COLUMNS", "Nuisance", "Pair", "PairError", "Pairs", "Raster", "Split", "leakage", "manifest", "open_pairs",
    "read_optical", "read_pair", "read_sar", "render", "render_pair", "split_by_patch", "split_by_scene",
    "split_pairs", "synthetic_pairs",
]  # fmt: skip


def open_pairs(config: DataConfig, seed: int = 0) -> Pairs:
    """The pairs that `config.source` names; `seed` counts for generated ones."""
    if config.source == "synthetic":
        return synthetic_pairs(config.n_synthetic, config.patch_size, seed, sar_bands=config.sar_bands)
    if config.root is None:
        raise ValueError(f"source={config.source!r} reads real data: give its folder (root, or --data PATH)")
    return manifest(
        config.root, datasets=config.datasets, sar_bands=config.sar_bands, optical_bands=config.optical_bands
    )
