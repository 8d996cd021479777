"""The supervised objective: true displacements, its weighted sum, and what its parts teach."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score

from sarmatch.config import CONFIDENT_PX, Config
from sarmatch.data import open_pairs
from sarmatch.data.crops import Sample, TrainingCrops
from sarmatch.geometry import cell_centres, translation
from sarmatch.matching.aggregation import pair_maps
from sarmatch.model import Descriptors, SarOpticalNet
from sarmatch.profiles import profile
from sarmatch.training.supervised import Objective, at_ends, true_displacements

SMOKE = profile("smoke")
MATCHING, UNCERTAINTY = {"plain", "consensus", "fine"}, {"mismatch", "residual"}


def crops(config: Config, n: int) -> Sample:
    data = TrainingCrops(open_pairs(config.data), config.data, seed=0)
    return torch.utils.data.default_collate([data[0, i] for i in range(n)])


def build(config: Config) -> Objective:
    torch.manual_seed(0)
    return Objective(SarOpticalNet(config.model), config.training)


@pytest.fixture(scope="module")
def batch() -> Sample:
    return crops(SMOKE, 2)


def test_true_displacements_of_a_shift():
    images = torch.zeros(1, 1, 16, 16)
    valid = torch.ones(1, 16, 16, dtype=torch.bool)
    batch = {"sar": images, "optical": images, "sar_valid": valid, "optical_valid": valid}
    batch |= {"A_sar_to_optical": translation(4.0, -2.0).float()[None], "field": torch.zeros(1, 2, 16, 16)}
    forward, backward, sar_mask, optical_mask = true_displacements(batch)
    assert torch.equal(forward, torch.tensor([4.0, -2.0]).expand(1, 4, 4, 2))
    assert torch.allclose(backward, forward)
    assert sar_mask[0].tolist() == [[False] * 4] + [[True, True, True, False]] * 3  # the rest leaves the image
    assert optical_mask[0].tolist() == [[False, True, True, True]] * 3 + [[False] * 4]


def test_true_displacements_of_a_bent_crop_lead_back():
    data = profile("smoke").replace(data={"deformation_probability": 1.0, "deformation_px": 6.0}).data
    bent = torch.utils.data.default_collate([TrainingCrops(open_pairs(data), data, 0)[0, i] for i in range(4)])
    forward, backward, sar_mask, _ = true_displacements(bent)
    steps = (forward[:, 1:] - forward[:, :-1]).norm(dim=-1)
    assert (steps > 0.05).any()  # neighbours move apart
    # At the place where a SAR cell lies, the optical image knows the way back: interpolated, so to a tenth of a pixel.
    places = (cell_centres(16, 16, 4) + forward)[..., None, :]
    back = F.grid_sample(backward.movedim(-1, 1), (places[..., 0, :] - 1.5) / 30 - 1, align_corners=True).movedim(1, -1)
    inner = sar_mask.clone()
    inner[:, [0, -1]], inner[:, :, [0, -1]] = False, False
    far_in = ((places[..., 0, :] > 2) & (places[..., 0, :] < 61)).all(-1) & inner
    assert far_in.float().mean() > 0.3
    assert (back - forward)[far_in].norm(dim=-1).max() < 0.3


def test_a_share_of_the_batch_is_enough_for_the_fine_level(batch):
    def losses(share: float) -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        return build(SMOKE.replace(training={"fine_share": share})).eval()(batch)

    whole, half = losses(1.0), losses(0.5)
    assert half["fine"] != whole["fine"]
    assert half["consensus"] == whole["consensus"]
    one = build(SMOKE).eval()({name: value[:1] for name, value in batch.items()})
    assert torch.allclose(half["fine"], one["fine"], rtol=1e-5)


def test_the_uncertainty_of_each_image_alone_is_held_to_mismatches(batch):
    plain, held = build(SMOKE), build(SMOKE.replace(training={"image_mismatch": True}))
    assert "image_mismatch" not in plain(batch)
    losses = held(batch)
    losses["image_mismatch"].backward()
    for encoder in (held.net.sar_encoder, held.net.optical_encoder):
        assert encoder.uncertainty.fusion_out.weight.grad.abs().sum() > 0
    assert held.net.head.out.weight.grad is None  # which match is right is not for uncertainty to change


def test_losses_fall_on_a_batch_that_repeats():
    # Without oriented gradients, which are half right from the start: then being right is no longer learned here.
    config = profile("smoke").replace(data={"n_synthetic": 12}, model={"oriented_gradients": False})
    objective, batch = build(config), crops(config, 4)
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3)
    history = []
    for _ in range(25):
        losses = objective(batch)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        history.append({name: value.item() for name, value in losses.items()})
    assert set(history[0]) == {"loss"} | MATCHING | UNCERTAINTY
    assert all(history[-1][name] < history[0][name] for name in ("plain", "consensus", "mismatch", "loss"))


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ({}, MATCHING | UNCERTAINTY),
        ({"uncertainty": False}, MATCHING),
        ({"consensus_cells": ()}, {"plain"} | UNCERTAINTY),
        ({"consensus_cells": (), "uncertainty": False}, {"plain"}),
    ],
)
def test_the_loss_is_the_weighted_sum_of_table_2(batch, model, names):
    losses = {name: value.item() for name, value in build(SMOKE.replace(model=model))(batch).items()}
    assert set(losses) - {"loss"} == names
    expected = sum((1.0 if name in MATCHING else 0.5) * losses[name] for name in names)
    assert losses["loss"] == pytest.approx(expected, rel=1e-5)


def test_weights_of_the_two_terms_come_from_the_configuration(batch):
    config = SMOKE.replace(training={"matching_weight": 0.0, "uncertainty_weight": 3.0})
    losses = build(config)(batch)
    assert losses["loss"].item() == pytest.approx(3 * (losses["mismatch"] + losses["residual"]).item(), rel=1e-5)


def test_doubt_does_not_teach_matching(batch):
    """Whether a match is right is a fact to it: nothing flows back into similarities and their scales."""
    objective = build(SMOKE)
    losses = objective(batch)
    (losses["mismatch"] + losses["residual"]).backward()
    net = objective.net
    matching = [*net.head.parameters(), net.plain_log_scale, net.coarse_log_scales, net.vote_log_scale]
    assert all(p.grad is None or not p.grad.any() for p in matching)
    learns = [*net.source_weights.parameters(), *net.sar_encoder.uncertainty.parameters(), net.residual_log_scales]
    assert all(p.grad is not None for p in learns)


def test_places_beyond_the_window_say_nothing_about_doubt(batch):
    far = batch | {"A_sar_to_optical": translation(30.0, 0.0).float()[None].repeat(2, 1, 1)}
    losses = build(SMOKE)(far)  # the window of the profile is 16 px
    assert losses["mismatch"].item() == 0.0
    assert losses["residual"].item() == 0.0
    losses = build(SMOKE.replace(training={"window_px": 32.0}))(far)
    assert losses["mismatch"].item() > 0


def test_a_map_is_read_at_the_end_of_each_displacement():
    generator = torch.Generator().manual_seed(0)
    optical_map = torch.rand(2, 5, 6, generator=generator)
    displacement = torch.randint(-3, 4, (2, 5, 6, 2), generator=generator)
    found = at_ends(optical_map, displacement)
    for b in range(2):
        for y in range(5):
            for x in range(6):
                dx, dy = displacement[b, y, x].tolist()
                to_y, to_x = min(max(y + dy, 0), 4), min(max(x + dx, 0), 5)  # the nearest cell, off the image
                assert found[b, y, x] == optical_map[b, to_y, to_x]


def unit(*shape: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_doubt_rises_where_an_image_is_noise():
    """Half of the SAR images is pure noise, where descriptors agree with nothing; only L_unc is learned from."""
    config = SMOKE.replace(data={"n_synthetic": 12}, model={"consensus_cells": ()})
    objective, batch = build(config), crops(config, 4)
    net = objective.net.eval()
    batch["A_sar_to_optical"] = torch.eye(3).repeat(4, 1, 1)
    generator = torch.Generator().manual_seed(1)
    batch["sar"][..., :32] = torch.rand(batch["sar"][..., :32].shape, generator=generator)
    coarse = unit(4, config.model.descriptor_dim, 16, 16, seed=2)
    noisy = coarse.clone()
    noisy[..., :8] = unit(4, config.model.descriptor_dim, 16, 8, seed=3)
    with torch.no_grad():
        sar, optical = net.sar_encoder(batch["sar"]), net.optical_encoder(batch["optical"])
    learned = [net.sar_encoder.uncertainty, net.optical_encoder.uncertainty, net.source_weights]
    optimizer = torch.optim.Adam([p for module in learned for p in module.parameters()], lr=1e-2)

    def describe() -> tuple[Descriptors, Descriptors]:
        return (
            Descriptors(noisy, sar.fine, net.sar_encoder.uncertainty(sar.features)),
            Descriptors(coarse, optical.fine, net.optical_encoder.uncertainty(optical.features)),
        )

    def mean_uncertainty() -> torch.Tensor:
        with torch.no_grad():
            return sum(pair_maps(net, *describe()))

    before, history = mean_uncertainty(), []
    for _ in range(40):
        losses = objective._losses(*describe(), batch)
        loss = losses["mismatch"] + losses["residual"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    after = mean_uncertainty()
    noise = torch.zeros(4, 16, 16, dtype=torch.bool)
    noise[..., :8] = True
    inner = (slice(None), slice(1, -1), [1, 2, 3, 4, 5, 6, 9, 10, 11, 12, 13, 14])  # kernels at the seam see both
    assert history[-1] < history[0]
    assert after[..., 1:7].mean() > before[..., 1:7].mean() + 0.1
    assert after[..., 1:7].mean() > after[..., 9:15].mean() + 0.2
    assert roc_auc_score(noise[inner].flatten(), after[inner].flatten()) > 0.9


def test_a_match_at_the_centre_of_its_cell_counts_as_right():
    assert CONFIDENT_PX > 2 * 2**0.5  # a corner of a cell of 4 px is that far from its centre
