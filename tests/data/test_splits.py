"""Splits by scene and by patch."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sarmatch.config import DataConfig
from sarmatch.data import PairError, Pairs, Split, leakage, split_by_patch, split_by_scene, split_pairs
from sarmatch.data.pairs import INDEX_COLUMNS
from sarmatch.data.splits import validation_roles

FRACTIONS = (0.70, 0.15, 0.15)


def make_pairs(scenes: list[str], datasets: list[str] | None = None, seed: int = 0) -> Pairs:
    """An index without images: one row for each entry of `scenes`."""
    rng = np.random.default_rng(seed)
    n = len(scenes)
    index = pd.DataFrame(
        {
            "id": [f"p{i}" for i in range(n)],
            "dataset": datasets or ["d"] * n,
            "scene": scenes,
            "season": rng.choice(["spring", "summer", "fall", "winter"], n),
            "land_cover": rng.choice(["forest", "urban", "water"], n, p=[0.7, 0.25, 0.05]),
        }
    )
    return Pairs(index, lambda row: pytest.fail("a split must not read images"))


def ids(split: Split) -> list[list[str]]:
    return [list(part.index["id"]) for part in (split.train, split.validation, split.test)]


def test_the_papers_numbers() -> None:
    pairs = make_pairs([f"s{i % 252}" for i in range(180_662)])
    split = split_by_patch(pairs)
    assert [len(part) for part in ids(split)] == [126_463, 27_099, 27_100]
    assert sum(map(len, map(set, ids(split)))) == len(set().union(*ids(split))) == 180_662
    whole = pairs.index.groupby(["season", "land_cover"]).size()
    for part, share in ((split.train, 126_463 / 180_662), (split.test, 27_100 / 180_662)):
        counts = part.index.groupby(["season", "land_cover"]).size().reindex(whole.index, fill_value=0)
        assert (counts - whole * share).abs().max() < 2


@settings(deadline=None, max_examples=50)
@given(n=st.integers(20, 400), seed=st.integers(0, 5))
def test_patch_split_is_a_partition_with_exact_totals(n: int, seed: int) -> None:
    split = split_by_patch(make_pairs(["s"] * n, seed=seed), FRACTIONS, seed)
    train, validation, test = ids(split)
    assert sorted(train + validation + test) == sorted(f"p{i}" for i in range(n))
    assert (len(train), len(validation)) == (round(0.7 * n), round(0.15 * n))


def test_patch_split_depends_on_the_seed_only() -> None:
    pairs = make_pairs(["s"] * 200)
    assert ids(split_by_patch(pairs, FRACTIONS, 3)) == ids(split_by_patch(pairs, FRACTIONS, 3))
    assert ids(split_by_patch(pairs, FRACTIONS, 3)) != ids(split_by_patch(pairs, FRACTIONS, 4))


@settings(deadline=None, max_examples=100)
@given(sizes=st.lists(st.integers(1, 40), min_size=3, max_size=20), seed=st.integers(0, 3))
def test_scene_split_is_disjoint_and_close_to_the_fractions(sizes: list[int], seed: int) -> None:
    scenes = [f"s{i}" for i, size in enumerate(sizes) for _ in range(size)]
    pairs = make_pairs(scenes)
    split = split_by_scene(pairs, FRACTIONS, seed)
    parts = (split.train, split.validation, split.test)
    train, validation, test = ids(split)
    assert sorted([*train, *validation, *test]) == sorted(pairs.index["id"])
    assert sum(part.index["scene"].nunique() for part in parts) == len(sizes)
    assert leakage(split) == 0 and all(len(part) for part in parts)
    for part, share in zip(parts, FRACTIONS, strict=True):
        assert abs(len(part) - share * len(scenes)) <= 2 * max(sizes)


def test_scene_split_divides_each_dataset_by_its_own_scenes() -> None:
    scenes = ["a/1"] * 8 + ["a/2"] * 2 + ["a/3"] * 2 + ["b/1", "b/2", "b/3"] + ["c/1"] * 3 + ["c/2", "d/1"]
    datasets = [name[0] for name in scenes]
    split = split_by_scene(make_pairs(scenes, datasets))
    assert set(split.train.index["dataset"]) == {"a", "b", "c", "d"}
    assert set(split.validation.index["dataset"]) == {"a", "b"}
    assert set(split.test.index["dataset"]) == {"a", "b", "c"}
    assert set(split.train.index["scene"]) >= {"a/1", "c/1", "d/1"}
    assert list(split.train.index["dataset"]).count("a") == 8


def test_scene_split_does_not_depend_on_the_order_or_index_of_rows() -> None:
    pairs = make_pairs([f"s{i % 7}" for i in range(60)])
    order = np.random.default_rng(0).permutation(60)
    shuffled = Pairs(pairs.index.iloc[order], pairs.read)
    for first, second in zip(ids(split_by_scene(pairs)), ids(split_by_scene(shuffled)), strict=True):
        assert set(first) == set(second)


def test_leakage_counts_test_pairs_of_training_scenes() -> None:
    pairs = make_pairs(["a", "a", "b", "c"])
    split = Split(pairs.subset([0]), pairs.subset([]), pairs.subset([1, 2, 3]))
    assert leakage(split) == pytest.approx(1 / 3)
    assert leakage(split_by_patch(make_pairs(["a"] * 100))) == 1


def test_config_chooses_the_split() -> None:
    pairs = make_pairs([f"s{i % 10}" for i in range(100)])
    by_scene = DataConfig(split="scene", split_fractions=(0.6, 0.2, 0.2), split_seed=2)
    assert ids(split_pairs(pairs, by_scene)) == ids(split_by_scene(pairs, (0.6, 0.2, 0.2), 2))
    assert ids(split_pairs(pairs, DataConfig(split="patch"))) == ids(split_by_patch(pairs))


def test_a_part_may_be_left_out() -> None:
    pairs = make_pairs([f"s{i}" for i in range(10)])
    for split in (split_by_scene, split_by_patch):
        parts = ids(split(pairs, (0.8, 0.0, 0.2), 0))
        assert [len(part) for part in parts] == [8, 0, 2]


@pytest.mark.parametrize("split", [split_by_scene, split_by_patch])
def test_rejected_input(split) -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        split(make_pairs(["a", "b", "c"]), (0.5, 0.2, 0.2), 0)
    with pytest.raises(PairError, match="leave nothing for"):
        split(make_pairs(["a", "b"]), FRACTIONS, 0)


def test_unknown_scene_cannot_be_split_by_scene() -> None:
    with pytest.raises(PairError, match=r"'p1' has no scene.*split='patch'"):
        split_by_scene(make_pairs(["a", "", "b", "c"]))


def scenes_of(sizes: dict[str, int]) -> Pairs:
    rows = [(f"{scene}-{i}", "d", scene, "", "") for scene, n in sizes.items() for i in range(n)]
    return Pairs(pd.DataFrame(rows, columns=list(INDEX_COLUMNS)), lambda row: None)


def test_scenes_that_choose_weights_fit_no_confidence() -> None:
    validation = scenes_of({name: n for name, n in zip("abcdefg", (3, 1, 4, 1, 5, 9, 2), strict=True)})
    chooses, fits = validation_roles(validation)
    assert set(chooses.index["scene"]) == {"a", "d", "g"}
    assert set(fits.index["scene"]) == {"b", "c", "e", "f"}
    assert sorted([*chooses.index["id"], *fits.index["id"]]) == sorted(validation.index["id"])
    split = Split(validation, validation, validation)
    assert (len(split.selection), len(split.calibration)) == (len(chooses), len(fits))


def test_few_validation_scenes_do_both() -> None:
    validation = scenes_of({"a": 3, "b": 2, "c": 1})
    assert all(len(part) == len(validation) for part in validation_roles(validation))


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("123456")), min_size=1, max_size=30))
def test_neither_role_is_ever_empty_and_no_place_has_both(rows: list[tuple[str, str]]) -> None:
    table = [(f"p{i}", dataset, scene, "", "") for i, (dataset, scene) in enumerate(rows)]
    validation = Pairs(pd.DataFrame(table, columns=list(INDEX_COLUMNS)), lambda row: None)
    chooses, fits = validation_roles(validation)
    assert len(chooses) and len(fits)
    if validation.index["scene"].nunique() >= 4:
        assert not set(chooses.index["scene"]) & set(fits.index["scene"])


def test_the_split_of_a_table_is_taken_as_given() -> None:
    pairs = make_pairs(["a", "a", "b", "c", "d"])
    index = pairs.index.assign(split=["test", "test", "train", "validation", "train"])
    given = Pairs(index, pairs.read)
    assert ids(split_pairs(given, DataConfig())) == [["p2", "p4"], ["p3"], ["p0", "p1"]]
    by_patch = DataConfig(split="patch", split_fractions=(0.6, 0.2, 0.2))
    assert ids(split_pairs(given, by_patch)) == ids(split_by_patch(given, (0.6, 0.2, 0.2)))


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        (["train", "dev", "test"], "must hold train, validation, test; it holds .'dev'."),
        (["train", "train", "test"], "leaves nothing for validation"),
    ],
)
def test_a_given_split_that_cannot_be_is_rejected(parts, says) -> None:
    pairs = make_pairs(["a", "b", "c"])
    with pytest.raises(PairError, match=says):
        split_pairs(Pairs(pairs.index.assign(split=parts), pairs.read), DataConfig())


def test_a_given_split_must_not_tear_a_scene() -> None:
    pairs = make_pairs(["a", "b", "a", "c"])
    index = pairs.index.assign(split=["train", "validation", "test", "test"])
    with pytest.raises(PairError, match="scene 'a' stands in more than one part"):
        split_pairs(Pairs(index, pairs.read), DataConfig())
