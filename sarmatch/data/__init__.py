"""Co-registered SAR-optical pairs, all of one form (`Pairs`); start at `open_pairs`.

A folder with a `manifest.csv` needs no code: one row a pair, with the columns `id`, `sar` and `optical` (paths within
the folder) and, where known, `dataset`, `scene`, `season`, `land_cover`, `sar_later` (a later SAR image), `usable`
(0 leaves the row out) and `split` (train, validation or test, the same for all rows of a scene). Where a folder holds
several such tables, name the file instead of the folder. To add a dataset of another layout, write two functions of the
folder, one that recognises it and one that returns such a table of strings, and enter both in `datasets.DATASETS`, as
those of OMBRIA. Scaling, splits and `sarmatch data check` follow; `sarmatch train --profile s1s2 --data FOLDER
--data.datasets NAME` trains on it. For `sarmatch data get NAME`, list its files in `registries/NAME.txt`.
"""

from sarmatch.data.datasets import recognise
from sarmatch.data.download import DownloadError
from sarmatch.data.folder import check_data, open_folder, open_pairs
from sarmatch.data.pairs import INDEX_COLUMNS, AbsentDatasetError, Pair, PairError, Pairs
from sarmatch.data.raster import read_optical, read_pair, read_sar
from sarmatch.data.splits import Split, leakage, split_by_patch, split_by_scene, split_pairs
from sarmatch.data.synthetic import Nuisance, Rendering, render, render_pair, synthetic_pairs
from sarmatch.data.units import scale_optical, scale_sar

__all__ = [
    "INDEX_COLUMNS", "AbsentDatasetError", "DownloadError", "Nuisance", "Pair", "PairError", "Pairs", "Rendering",
    "Split", "check_data", "leakage", "open_folder", "open_pairs", "read_optical", "read_pair", "read_sar", "recognise",
    "render", "render_pair", "scale_optical", "scale_sar", "split_by_patch", "split_by_scene", "split_pairs",
    "synthetic_pairs",
]  # fmt: skip
