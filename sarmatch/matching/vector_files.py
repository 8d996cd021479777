"""Files of matches: tables and points for a GIS, written part by part, so matches of a scene need not fit memory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import rasterio.warp

from sarmatch.io import atomic_path, check_output, optional_package

if TYPE_CHECKING:
    from sarmatch.matching.matches import Matches

GEOREFERENCE = ("sar_transform", "sar_crs", "optical_transform", "optical_crs")  #: Kept beside the table by Parquet.

Writer = Callable[["Iterator[Matches]", "bool | None", Path], None]


def write_matches(path: str | os.PathLike[str], parts: Iterable[Matches], overlaps: bool | None = None) -> None:
    """Write the matches of all parts of a pair into one file, with the decision on it; see `matches_writer`.

    There must be a part, if an empty one; one at a time is held. An existing file is replaced in one step.
    """
    write = matches_writer(path)
    with atomic_path(path) as temporary:
        write(_nonempty(parts), None if overlaps is None else bool(overlaps), temporary)


def matches_writer(path: str | os.PathLike[str]) -> Writer:
    """The writer for a file of matches, also to check a path before a long computation: errors of `io.check_output`,
    and a ValueError where the suffix needs a package that is not installed."""
    writers: dict[str, Writer] = {
        ".csv": _write_csv,
        ".parquet": _write_parquet,
        ".geojson": _write_geojson,
        ".gpkg": _write_gpkg,
    }
    suffix = check_output(path, "matches", writers).suffix.lower()
    if suffix == ".gpkg":
        optional_package("pyogrio", "gis")
    return writers[suffix]


def _write_csv(parts: Iterator[Matches], overlaps: bool | None, path: Path) -> None:
    first = _table(next(parts), overlaps)
    with open(path, "w", encoding="utf-8", newline="") as file:
        first.to_csv(file, index=False)
        for matches in parts:
            _table(matches, overlaps).reindex(columns=first.columns).to_csv(file, index=False, header=False)


def _write_parquet(parts: Iterator[Matches], overlaps: bool | None, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    first = pa.Table.from_pandas(_table(next(parts), overlaps), preserve_index=False)
    with pa.parquet.ParquetWriter(path, first.schema) as writer:
        writer.write_table(first)
        for matches in parts:
            writer.write_table(pa.Table.from_pandas(_table(matches, overlaps), first.schema, preserve_index=False))


def _write_geojson(parts: Iterator[Matches], overlaps: bool | None, path: Path) -> None:
    """One point a match in WGS84 (RFC 7946), at its place in the SAR image, or else in the optical one."""
    first = next(parts)
    head = {"type": "FeatureCollection", "note": _places(first)[2], "overlaps": overlaps}
    with open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(head)[:-1] + ', "features": [')
        for i, feature in enumerate(chain.from_iterable(map(_features, chain([first], parts)))):
            file.write((", " if i else "") + json.dumps(feature, allow_nan=False))
        file.write("]}")


def _features(matches: Matches) -> Iterator[dict[str, Any]]:
    x, y, _ = _places(matches)
    frame = matches.to_frame().astype(float)
    rows = frame.astype(object).where(np.isfinite(frame), None).to_dict("records")
    for *xy, properties in zip(x.tolist(), y.tolist(), rows, strict=True):
        yield {"type": "Feature", "geometry": {"type": "Point", "coordinates": xy}, "properties": properties}


def _write_gpkg(parts: Iterator[Matches], overlaps: bool | None, path: Path) -> None:
    """Points in the SAR image's own reference system where it has one, else as `_places`."""
    for number, matches in enumerate(parts):
        frame, crs = _table(matches, overlaps), matches.sar_crs
        if crs is not None and matches.sar_transform is not None:
            x, y = frame["map_x_sar"].to_numpy(), frame["map_y_sar"].to_numpy()
        else:
            x, y, note = _places(matches)
            crs = "EPSG:4326" if note.startswith("WGS84") else None
        columns, names = [frame[name].to_numpy() for name in frame], list(frame)
        options = {"geometry_type": "Point", "crs": crs, "driver": "GPKG", "layer": "matches", "append": number > 0}
        optional_package("pyogrio.raw", "gis").write(path, _points(x, y), columns, names, **options)


def _points(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Points as well-known binary, (N,) of bytes."""
    record = np.zeros(len(x), dtype=[("order", "u1"), ("kind", "<u4"), ("x", "<f8"), ("y", "<f8")])
    record["order"], record["kind"], record["x"], record["y"] = 1, 1, x, y
    return np.array([row.tobytes() for row in record], dtype=object)


def _nonempty(parts: Iterable[Matches]) -> Iterator[Matches]:
    """Parts with matches; where none has any, the last of them, so that a file is written."""
    last, found = None, False
    for last in parts:
        if len(last):
            found = True
            yield last
    if not found and last is not None:
        yield last


def _table(matches: Matches, overlaps: bool | None) -> pd.DataFrame:
    """Matches with the decision on their pair in every row where there is one; what else Parquet keeps as `attrs`."""
    frame = matches.to_frame() if overlaps is None else matches.to_frame().assign(overlaps=overlaps)
    known = {name: getattr(matches, name) for name in GEOREFERENCE} | {"overlaps": overlaps}
    frame.attrs = {
        name: list(value)[:6] if name.endswith("transform") else value
        for name, value in known.items()
        if value is not None
    }
    return frame


def _places(matches: Matches) -> tuple[np.ndarray, np.ndarray, str]:
    """Coordinates x and y (N,) in WGS84 where an image has its place, else pixels; and which."""
    for image in ("sar", "optical"):
        crs = getattr(matches, f"{image}_crs")
        if crs is not None and getattr(matches, f"{image}_transform") is not None:
            known = matches.map_coordinates()
            x, y = rasterio.warp.transform(crs, "EPSG:4326", known[f"map_x_{image}"], known[f"map_y_{image}"])
            return np.asarray(x), np.asarray(y), f"WGS84 positions in the {image} image"
    note = "not georeferenced: coordinates are (x, y) pixels of the SAR image, y pointing down"
    return matches.xy_sar[:, 0], matches.xy_sar[:, 1], note
