"""One contract for co-registered SAR-optical pairs (`Pairs`), and readers that fulfil it; start at `open_pairs`."""

from __future__ import annotations

from sarmatch.config import DataConfig
from sarmatch.data.check import check_data, open_folder, recognise
from sarmatch.data.download import DownloadError
from sarmatch.data.folder import manifest
from sarmatch.data.pairs import INDEX_COLUMNS, AbsentDatasetError, Pair, PairError, Pairs
from sarmatch.data.raster import read_optical, read_pair, read_sar, scale_optical, scale_sar
from sarmatch.data.splits import Split, leakage, split_by_patch, split_by_scene, split_pairs
from sarmatch.data.synthetic import Nuisance, Rendering, render, render_pair, synthetic_pairs

__all__ = [
    "INDEX_COLUMNS", "AbsentDatasetError", "DownloadError", "Nuisance", "Pair", "PairError", "Pairs", "Rendering",
    "Split", "check_data", "leakage", "manifest", "open_folder", "open_pairs", "read_optical", "read_pair", "read_sar",
    "recognise", "render", "render_pair", "scale_optical", "scale_sar", "split_by_patch", "split_by_scene",
    "split_pairs", "synthetic_pairs",
]  # fmt: skip


def open_pairs(config: DataConfig, seed: int = 0) -> Pairs:
    """The pairs that a config names; `seed` is that of generated pairs.

    Raises:
        ValueError: no `root` for real data.
        FileNotFoundError: no such folder, or not what `source` says in it.
        AbsentDatasetError, PairError: a dataset does not occur in it, or no usable pair.
    """
    if config.source == "synthetic":
        return synthetic_pairs(config.n_synthetic, config.patch_size, seed, sar_bands=config.sar_bands)
    if config.root is None:
        raise ValueError(f"source={config.source!r} reads real data: give its folder (root, or --data PATH)")
    layout = recognise(config.root)
    other = "manifest" if layout in ("manifest", "ombria") else "sen12ms"
    if other != config.source:
        raise FileNotFoundError(
            f"{config.root}: source={config.source!r} expected, but the folder is laid out as {layout}; set "
            f"source={other!r} (profile {'s1s2' if other == 'manifest' else 'sen12ms'!r}) or give another folder"
        )
    return open_folder(
        config.root, datasets=config.datasets, sar_bands=config.sar_bands, optical_bands=config.optical_bands
    )
