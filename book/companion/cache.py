"""Tables that were measured once, kept under a digest of all that they depend on.

No table outlives a training, a change of profile, or data of another size, band or origin; after a single file among
many was corrected, remove `records/` of the run. The code that measured is no part of the digest: tables carry their
commit in a column.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from sarmatch.io import atomic_path, digest


def cached_table(
    folder: Path, name: str, depends_on: Mapping[str, Any], make: Callable[[], pd.DataFrame]
) -> pd.DataFrame:
    """A table, read where it was kept, else made and kept.

    Args:
        folder: of a run; the table is `records/<name>-<digest>.parquet` in it.
        name: for people; the digest tells tables apart.
        depends_on: all that decides the table, of kinds that `digest` takes.
    """
    path = folder / "records" / f"{name}-{digest(depends_on)}.parquet"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.parent / f".{path.stem}.lock"):  # another process may be making the same one
            if not path.exists():
                table = make()
                with atomic_path(path) as partial:
                    table.to_parquet(partial)
    return pd.read_parquet(path)
