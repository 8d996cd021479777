"""Self-supervised pretraining: samples, both tasks, its scores, and that a killed run goes on to the same weights."""

import copy
import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from sarmatch.config import Config, PretrainingConfig
from sarmatch.data import Split, open_pairs, split_pairs
from sarmatch.data.crops import TrainingCrops
from sarmatch.model import SarOpticalNet
from sarmatch.model.checkpoints import save_weights
from sarmatch.profiles import profile
from sarmatch.training import selfsupervised
from sarmatch.training.losses import info_nce
from sarmatch.training.selfsupervised import (
    PretrainingCrops,
    PretrainingObjective,
    embed,
    embed_pairs,
    encode,
    pretrain,
    pretraining_scores,
    quarter_turns,
    retrieval_recall,
    rotation_accuracy,
)
from sarmatch.training.supervised import finetune


def tiny(**pretraining) -> Config:
    """A few steps on two dozen synthetic pairs."""
    settings = {"epochs": 100, "max_steps": 4, "batch_size": 4, "checkpoint_every": 1, "validate_every": 2}
    return profile("smoke").replace(data={"n_synthetic": 24}, pretraining=settings | pretraining)


@pytest.fixture(scope="module")
def split() -> Split:
    config = tiny()
    return split_pairs(open_pairs(config.data), config.data)


def make_objective(config: Config, seed: int = 0) -> PretrainingObjective:
    torch.manual_seed(seed)
    return PretrainingObjective(SarOpticalNet(config.model), config.pretraining)


def share(unpaired: float) -> PretrainingConfig:
    """Contrast over images, whose crops are moved against each other as in fine-tuning."""
    return PretrainingConfig(unpaired_share=unpaired, contrast_over="image")


def make_batch(split: Split, config: Config, unpaired_share: float = 0.0):
    crops = PretrainingCrops(split.train, config.data, 0, share(unpaired_share))
    return torch.utils.data.default_collate([crops[0, i] for i in range(4)])


def test_similarity_over_cells_is_the_mean_over_cells_and_over_the_image_one_cosine():
    net = make_objective(tiny()).net.eval()
    one, two = torch.randn(2, 48, 3, 4), torch.randn(2, 48, 3, 4)
    with torch.no_grad():
        cells = [net.head(f) for f in (one, two)]
        similarity = embed(net, one, "cells") @ embed(net, two, "cells").T
        assert torch.allclose(similarity, torch.einsum("achw,bchw->ab", *cells) / 12, atol=1e-6)
        pooled = embed(net, one, "image")
    assert pooled.shape == (2, net.config.descriptor_dim)
    assert torch.allclose(pooled.norm(dim=1), torch.ones(2))


def test_contrast_over_cells_takes_aligned_crops(split):
    crops = PretrainingCrops(split.train, tiny().data, 0, PretrainingConfig(unpaired_share=0.0))
    assert torch.allclose(crops[0, 0]["A_sar_to_optical"], torch.eye(3), atol=1e-5)


def test_paired_samples_are_the_crops_of_fine_tuning(split):
    config = tiny()
    crops, plain = PretrainingCrops(split.train, config.data, 0, share(0.0)), TrainingCrops(split.train, config.data, 0)
    sample = crops[3, 2]
    assert bool(sample["paired"])
    for name, value in plain[3, 2].items():
        assert torch.equal(sample[name], value)


def test_unpaired_samples_show_another_scene_and_are_functions_of_seed_and_epoch(split):
    config = tiny()
    crops = PretrainingCrops(split.train, config.data, 0, share(1.0))
    scenes = split.train.index["scene"].to_numpy()
    rng = np.random.default_rng(0)
    assert all(scenes[crops._elsewhere(i, rng)] != scenes[i] for i in range(len(crops)) for _ in range(5))
    plain = TrainingCrops(split.train, config.data, 0)
    sample = crops[1, 0]
    assert not bool(sample["paired"])
    assert bool(sample["A_sar_to_optical"].isnan().all())
    assert torch.equal(sample["sar"], plain[1, 0]["sar"])
    sources = [i for i in range(len(plain)) if torch.equal(sample["optical"], plain[1, i]["optical"])]
    assert len(sources) == 1
    assert scenes[sources[0]] != scenes[0]
    assert torch.equal(crops[1, 0]["optical"], sample["optical"])


def test_pairs_of_one_scene_are_unpaired_with_another_pair(split):
    config = tiny()
    one = split.train.subset([0, 1, 2])
    one.index["scene"] = "only"
    crops = PretrainingCrops(one, config.data, 0, share(1.0))
    rng = np.random.default_rng(0)
    assert {crops._elsewhere(1, rng) for _ in range(20)} == {0, 2}
    assert bool(PretrainingCrops(one.subset([0]), config.data, 0, share(1.0))[0, 0]["paired"])  # there is no other


def test_the_share_of_unpaired_samples_is_as_asked(split):
    crops = PretrainingCrops(split.train, tiny().data, 0, share(0.25), cache=True)
    paired = [bool(crops[epoch, i]["paired"]) for epoch in range(12) for i in range(len(crops))]
    assert np.mean(paired) == pytest.approx(0.75, abs=4 * np.sqrt(0.25 * 0.75 / len(paired)))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=5))
def test_quarter_turns_can_be_undone(turns):
    images = torch.randn(len(turns), 2, 6, 6, generator=torch.Generator().manual_seed(0))
    k = torch.tensor(turns)
    turned = quarter_turns(images, k)
    assert torch.equal(quarter_turns(turned, (4 - k) % 4), images)
    assert [torch.equal(a, b) for a, b in zip(turned, images, strict=True)] == [t == 0 for t in turns]


def test_one_quarter_turn_is_counter_clockwise():
    image = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    assert quarter_turns(image, torch.tensor([1])).tolist() == [[[[2.0, 4.0], [1.0, 3.0]]]]


def test_images_of_one_place_turn_together_and_others_do_not(split, monkeypatch):
    objective = make_objective(tiny()).eval()
    drawn = []
    monkeypatch.setattr(
        "sarmatch.training.selfsupervised.quarter_turns", lambda x, turns: drawn.append(turns.clone()) or x
    )
    batch = make_batch(split, tiny())
    batch["paired"] = torch.tensor([True, False, True, False])
    for seed in range(20):
        torch.manual_seed(seed)
        objective(batch)
    same = torch.stack(drawn[::2]) == torch.stack(drawn[1::2])
    assert bool(same[:, [0, 2]].all())
    assert 0 < int(same[:, [1, 3]].sum()) < 40
    assert set(torch.stack(drawn).unique().tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("over", ["cells", "image"])
def test_losses_are_those_of_the_turned_images(split, over):
    config = tiny(contrast_over=over)
    objective = make_objective(config).eval()
    batch = make_batch(split, config)
    batch["paired"] = torch.tensor([True, True, False, True])
    torch.manual_seed(5)
    losses = objective(batch)
    torch.manual_seed(5)
    turns = torch.randint(4, (2, 4))
    turns[1, batch["paired"]] = turns[0, batch["paired"]]
    sar, optical = encode(objective.net, *map(quarter_turns, (batch["sar"], batch["optical"]), turns))
    contrast = info_nce(*(embed(objective.net, f, over) for f in (sar, optical)), 0.07, batch["paired"])
    rotation = sum(
        F.cross_entropy(objective.rotation_heads[name](features), t) / 2
        for name, features, t in zip(("sar", "optical"), (sar, optical), turns, strict=True)
    )
    assert losses["contrastive"].item() == pytest.approx(contrast.item(), rel=1e-4)
    assert losses["rotation"].item() == pytest.approx(rotation.item(), rel=1e-4)
    assert losses["loss"].item() == pytest.approx((contrast + rotation).item(), rel=1e-4)


@pytest.mark.parametrize(("contrastive", "rotation"), [(True, True), (True, False), (False, True)])
def test_what_is_on_gets_gradients_and_nothing_else(split, contrastive, rotation):
    config = tiny(contrastive=contrastive, rotation=rotation)
    objective = make_objective(config)
    losses = objective(make_batch(split, config))
    losses["loss"].backward()
    assert ("contrastive" in losses, "rotation" in losses) == (contrastive, rotation)
    trained = {name for name, p in objective.named_parameters() if p.grad is not None and bool(p.grad.any())}
    heads = {f"rotation_heads.{m}.{layer}.weight" for m in ("sar", "optical") for layer in ("hidden", "out")}
    assert heads <= trained if rotation else not any(name.startswith("rotation_heads") for name in trained)
    assert ("net.head.out.weight" in trained) == contrastive
    assert {"net.sar_encoder.out.conv.weight", "net.optical_encoder.out.conv.weight"} <= trained
    assert not any(".fine." in name or "uncertainty" in name or "log_scale" in name for name in trained)


def test_losses_fall_on_a_batch_that_repeats(split):
    config = tiny()
    objective = make_objective(config)
    batch = make_batch(split, config)
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3)
    history = []
    for _ in range(30):
        torch.manual_seed(0)  # the same turns each time
        losses = objective(batch)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        history.append({name: value.item() for name, value in losses.items()})
    assert history[-1]["contrastive"] < 0.5 * history[0]["contrastive"]
    assert history[-1]["rotation"] < 0.8 * history[0]["rotation"]


def test_embeddings_are_unit_vectors_and_repeatable(split):
    config = tiny()
    net = make_objective(config).net.train()
    one, two = (embed_pairs(net, split.train, 64, "image") for _ in range(2))
    assert net.training  # as it was before
    for z, again in zip(one, two, strict=True):
        assert z.shape == (len(split.train), config.model.descriptor_dim)
        assert not z.requires_grad
        assert torch.allclose(z.norm(dim=1), torch.ones(len(z)))
        assert torch.equal(z, again)  # no dropout
    with pytest.raises(ValueError, match="smaller than the 128 px crop"):
        embed_pairs(net, split.train, 128)


def test_recall_by_hand():
    z_sar = torch.eye(3)
    z_optical = torch.tensor([[1.0, 0, 0], [0, 0.1, 0.9], [0, 0.9, 0.1]])  # the last two are swapped
    assert retrieval_recall(z_sar, z_optical, 1) == pytest.approx(1 / 3)
    assert retrieval_recall(z_sar, z_optical, 2) == pytest.approx(1.0)


def test_recall_averages_both_directions():
    similarity = torch.tensor([[1.0, 0.5], [1.5, 2.0]])  # every row finds its partner, of the columns only the second
    assert retrieval_recall(similarity, torch.eye(2), 1) == pytest.approx((1.0 + 0.5) / 2)


@given(st.integers(1, 8), st.integers(1, 10))
def test_collapsed_embeddings_retrieve_at_chance(n, k):
    z = torch.ones(n, 3)
    assert retrieval_recall(z, z, k) == pytest.approx(min(k / n, 1.0))


@given(st.integers(2, 12), st.integers(0, 10**6))
@settings(max_examples=30)
def test_recall_rises_with_k_to_one_and_follows_the_pairs(n, seed):
    generator = torch.Generator().manual_seed(seed)
    z_sar, z_optical = (F.normalize(torch.randn(n, 4, generator=generator), dim=1) for _ in range(2))
    recalls = [retrieval_recall(z_sar, z_optical, k) for k in range(1, n + 1)]
    assert recalls == sorted(recalls)
    assert recalls[-1] == 1.0
    assert retrieval_recall(z_optical, z_sar, 1) == pytest.approx(recalls[0])
    assert retrieval_recall(z_sar, z_sar, 1) == 1.0


class Oracle(torch.nn.Module):
    """Tells the turn by the corner in which the mark is that was put into the upper left one."""

    def forward(self, features):
        corners = [(0, 0), (-1, 0), (-1, -1), (0, -1)]  # of the mark after 0..3 turns counter-clockwise
        return torch.stack([features[:, 0, y, x] for y, x in corners], dim=1)


class Constant(torch.nn.Module):
    """Always says two quarter turns."""

    def forward(self, features):
        return torch.tensor([0.0, 0.0, 1.0, 0.0]).expand(len(features), 4)


def test_rotation_accuracy_of_an_oracle_is_one_and_of_a_constant_is_chance(split, monkeypatch):
    objective = make_objective(tiny())

    def marked(net, pairs, crop_size):
        image = torch.zeros(3, 1, 8, 8)
        image[..., 0, 0] = 1.0
        yield image, image
        yield image[:1], image[:1]

    monkeypatch.setattr("sarmatch.training.selfsupervised.encode", lambda net, *images: images)
    monkeypatch.setattr("sarmatch.training.selfsupervised._windows", marked)
    objective.rotation_heads["sar"], objective.rotation_heads["optical"] = Oracle(), Constant()
    assert rotation_accuracy(objective, split.validation, 8) == {"rotation_sar": 1.0, "rotation_optical": 0.25}


def test_scores_follow_the_tasks(split):
    config = tiny()
    both = pretraining_scores(make_objective(config), split.validation, 64)
    assert set(both) == {"recall_1", "recall_5", "rotation_sar", "rotation_optical"}
    assert all(0 <= value <= 1 for value in both.values())
    alone = make_objective(tiny(rotation=False))
    assert set(pretraining_scores(alone, split.validation, 64)) == {"recall_1", "recall_5"}


class Killed(Exception):
    pass


def test_a_killed_pretraining_goes_on_to_the_same_weights(split, tmp_path, monkeypatch):
    config = tiny()
    scores = []

    def validate(objective, pairs, crop_size):
        scores.append(pretraining_scores(objective, pairs, crop_size))
        return scores[-1]

    def kill(objective, pairs, crop_size):
        raise Killed

    monkeypatch.setattr(selfsupervised, "pretraining_scores", validate)
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    pretrain(config, split, tmp_path / "whole", show_progress=False)
    monkeypatch.setattr(selfsupervised, "pretraining_scores", kill)
    with pytest.raises(Killed):  # at the first validation, in step 2, after the checkpoint of step 1
        pretrain(config, split, tmp_path / "killed", show_progress=False)
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    monkeypatch.setattr(selfsupervised, "pretraining_scores", validate)
    pretrain(config, split, tmp_path / "killed", show_progress=False)
    assert scores[:2] == scores[2:]
    for file in ("model.safetensors", "rotation_heads.safetensors"):
        whole, resumed = (load_file(tmp_path / name / file) for name in ("whole", "killed"))
        assert set(whole) == set(resumed)
        assert all(torch.equal(whole[key], resumed[key]) for key in whole), file


def test_the_last_weights_are_kept_not_the_best(split, tmp_path, monkeypatch):
    config = tiny(max_steps=3, validate_every=1)
    weights = []

    def worse_and_worse(objective, pairs, crop_size):
        weights.append(copy.deepcopy(objective.net.state_dict()))
        return {"recall_1": 1.0 / len(weights)}

    monkeypatch.setattr(selfsupervised, "pretraining_scores", worse_and_worse)
    pretrain(config, split, tmp_path, show_progress=False)
    kept = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(kept[name], value) for name, value in weights[-1].items())
    assert not all(torch.equal(kept[name], value) for name, value in weights[0].items())


@pytest.fixture
def unturned(monkeypatch) -> Callable[..., Config]:
    """A config without what accumulation parts draw anew: turns and dropout."""
    monkeypatch.setattr(selfsupervised, "quarter_turns", lambda images, turns: images)
    model = {"early_dropout": 0.0, "uncertainty_dropout": 0.0, "fusion_dropout": 0.0}
    return lambda **pretraining: tiny(rotation=False, **pretraining).replace(model=model)


@pytest.mark.parametrize("over", ["cells", "image"])
def test_accumulation_parts_have_together_the_gradient_of_the_whole(split, unturned, over):
    config = unturned(contrast_over=over)
    batch = make_batch(split, config)
    batch["paired"][1] = False
    objective = make_objective(config)
    objective(batch)["loss"].backward()
    whole = {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}
    objective.zero_grad()
    parts = [{name: value[rows] for name, value in batch.items()} for rows in (slice(0, 2), slice(2, 4))]
    with torch.no_grad():
        of_parts = [objective.embeddings(part) for part in parts]
    for own, part in enumerate(parts):
        (objective(part, of_parts, own)["loss"] / 2).backward()
    for name, gradient in whole.items():
        found = dict(objective.named_parameters())[name].grad
        assert torch.allclose(found, gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max())), name


def test_pretraining_in_parts_has_the_losses_of_whole_batches(split, tmp_path, unturned):
    losses = []
    for parts in (1, 2):
        (folder := tmp_path / str(parts)).mkdir()
        pretrain(unturned(accumulation_steps=parts, max_steps=3), split, folder, show_progress=False)
        losses.append([json.loads(line)["contrastive"] for line in (folder / "metrics.jsonl").read_text().splitlines()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3) and losses[0][2] != pytest.approx(losses[0][0], rel=1e-2)


def test_pretraining_with_both_tasks_off_is_an_error(split, tmp_path):
    with pytest.raises(ValueError, match="both tasks off"):
        pretrain(tiny(contrastive=False, rotation=False), split, tmp_path, show_progress=False)


@pytest.mark.parametrize("as_file", [False, True])
def test_fine_tuning_starts_from_the_weights_handed_over(split, tmp_path, as_file):
    # With a learning rate of next to nothing, what comes out is what went in.
    config = tiny().replace(training={"max_steps": 1, "learning_rate": 1e-12, "warmup_steps": 0, "weight_decay": 0.0})
    torch.manual_seed(99)
    other = SarOpticalNet(config.model)
    initial = other.state_dict()
    if as_file:
        save_weights(other, tmp_path / "initial.safetensors")
        initial = tmp_path / "initial.safetensors"
    results = []
    for i, start in enumerate((None, initial)):
        folder = tmp_path / str(i)
        folder.mkdir()
        finetune(config, split, folder, start, show_progress=False)
        results.append(load_file(folder / "model.safetensors"))
    scratch, handed = results
    reference = other.state_dict()
    assert all(torch.allclose(handed[name], reference[name], atol=1e-6) for name in reference)
    assert not torch.allclose(scratch["sar_encoder.out.conv.weight"], reference["sar_encoder.out.conv.weight"])


def test_weights_of_another_network_are_rejected(split, tmp_path):
    config = tiny()
    wider = SarOpticalNet(config.replace(model={"feature_width": 64}).model)
    with pytest.raises(ValueError, match=r"do not fit the network of config\.model"):
        finetune(config, split, tmp_path, wider.state_dict(), show_progress=False)
