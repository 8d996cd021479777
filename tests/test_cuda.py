"""Shapes and devices of CUDA on a machine without one: fake tensors compute neither, and complain of both.

A mixture of devices, a wait for a value (`.item()`, `.tolist()`) and a shape that depends on data are errors here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

from sarmatch.config import Config
from sarmatch.geometry import cell_valid
from sarmatch.matching import refinement
from sarmatch.matching.aggregation import fine_logits
from sarmatch.matching.assignment import Prediction, mutual_matches, predict
from sarmatch.matching.field import residual_volume, smoothed_field
from sarmatch.matching.monte_carlo import predict_monte_carlo
from sarmatch.model import STRIDE, Encoded, SarOpticalNet, encode_pair
from sarmatch.profiles import PROFILES
from sarmatch.training.selfsupervised import PretrainingObjective
from sarmatch.training.supervised import Objective

BATCH, SIDE, RADIUS = 2, 64, 16.0
CONFIG: Config = PROFILES["smoke"]


@pytest.fixture(autouse=True)
def fake_cuda() -> Iterator[None]:
    with FakeTensorMode(), torch.device("cuda"):
        yield


def images() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    valid = torch.ones(BATCH, SIDE, SIDE, dtype=torch.bool)
    return torch.rand(BATCH, 1, SIDE, SIDE), torch.rand(BATCH, 3, SIDE, SIDE), valid, valid.clone()


def encoded() -> tuple[SarOpticalNet, Encoded, Encoded]:
    net = SarOpticalNet(CONFIG.model).eval()
    with torch.no_grad():
        return net, *encode_pair(net, images())


def on_cuda(prediction: Prediction) -> bool:
    cells = SIDE // STRIDE
    return prediction.forward.is_cuda and prediction.forward.shape[-2:] == (cells, cells)


@pytest.mark.parametrize("use_consensus", [True, False])
def test_one_pass_waits_for_nothing(use_consensus: bool) -> None:
    net, sar, optical = encoded()
    prediction = predict(net, sar.descriptors, optical.descriptors, RADIUS, sar.valid, optical.valid, use_consensus)
    assert on_cuda(prediction)
    assert len(prediction.forward) == BATCH


def test_passes_with_dropout_wait_for_nothing() -> None:
    net, sar, optical = encoded()
    prediction = predict_monte_carlo(
        net, sar.prefix, optical.prefix, RADIUS, 7, sar.valid, optical.valid, seeds=range(BATCH)
    )
    assert on_cuda(prediction)
    assert prediction.mutual_information is not None and len(prediction.mutual_information) == BATCH


def test_the_number_of_matches_is_the_first_that_depends_on_data() -> None:
    net, sar, optical = encoded()
    prediction = predict(net, sar.descriptors, optical.descriptors, RADIUS)
    with pytest.raises(DynamicOutputShapeException, match="nonzero"):
        mutual_matches(prediction.forward, prediction.backward, sar.valid, optical.valid)


def test_refinement_of_known_displacements_waits_for_nothing() -> None:
    net, sar, optical = encoded()
    planes = refinement._Planes(sar.descriptors.fine, optical.descriptors.fine, 20, STRIDE)
    needed = torch.zeros(300, 3, dtype=torch.long)
    logits = refinement._map_logits(
        planes.similarity(needed), planes.on_image(needed), CONFIG.model.consensus_cells, net.fine_log_scales.exp()
    )
    assert logits.is_cuda and logits.shape == (300, SIDE // STRIDE, SIDE // STRIDE)
    window = torch.rand(50, 9, 9)
    position = refinement.local_expectation(window)
    assert refinement.window_moments(window, position).is_cuda


def test_the_fine_level_along_a_field_waits_for_nothing() -> None:
    net, sar, optical = encoded()
    cells = SIDE // STRIDE
    field = smoothed_field(torch.rand(BATCH, cells, cells, 2), torch.rand(BATCH, cells, cells), 5)
    logits = fine_logits(net, residual_volume(sar.descriptors.fine, optical.descriptors.fine, field))
    assert logits.values.is_cuda and logits.values.shape == (BATCH, 9, 9, cells, cells)


def sample() -> dict[str, torch.Tensor]:
    sar, optical, sar_valid, optical_valid = images()
    truth = dict(A_sar_to_optical=torch.eye(3).expand(BATCH, 3, 3), field=torch.zeros(BATCH, 2, *sar.shape[-2:]))
    return dict(sar=sar, optical=optical, sar_valid=sar_valid, optical_valid=optical_valid, **truth)


@pytest.mark.parametrize("uncertainty", [True, False])
def test_the_losses_of_a_training_step_wait_for_nothing(uncertainty: bool) -> None:
    model = dataclasses.replace(CONFIG.model, uncertainty=uncertainty)
    losses = Objective(SarOpticalNet(model), CONFIG.training)(sample())
    assert all(value.is_cuda and not value.ndim for value in losses.values())


@pytest.mark.parametrize("changes", [{}, {"contrast_over": "image", "contrastive_form": "printed"}])
def test_the_losses_of_a_pretraining_step_wait_for_nothing(changes: dict[str, Any]) -> None:
    config = dataclasses.replace(CONFIG.pretraining, **changes)
    paired = torch.ones(BATCH, dtype=torch.bool)
    losses = PretrainingObjective(SarOpticalNet(CONFIG.model), config)({**sample(), "paired": paired})
    assert all(value.is_cuda and not value.ndim for value in losses.values())


def test_gradients_wait_for_nothing() -> None:
    """On fake tensors of a CPU: those of a GPU have no gradient without one."""
    with torch.device("cpu"):
        objective = Objective(SarOpticalNet(CONFIG.model), CONFIG.training)
        objective(sample())["loss"].backward()
    assert objective.net.coarse_log_scales.grad is not None
    assert objective.net.sar_encoder.stem.conv.weight.grad is not None


def test_masks_of_cells_are_on_the_device_of_those_of_pixels() -> None:
    assert cell_valid(images()[2], STRIDE).is_cuda
