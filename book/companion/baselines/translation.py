"""Optical images translated to look like radar, then matched by grey values (Merkle et al. 2018, ref. 18)."""

import torch
import torch.nn.functional as F
from timm.layers import ConvNormAct
from torch import Tensor, nn
from torch.func import functional_call

from companion.baselines.learned import PeerNet, PeerSize
from companion.baselines.similarities import GreyTemplateMatcher
from sarmatch.data.crops import Sample
from sarmatch.geometry import warp
from sarmatch.matching.matches import Matches
from sarmatch.model.layers import norm_layer, upsample

L1_WEIGHT = 100.0  # against the adversarial loss, as in pix2pix


class Generator(nn.Module):
    """A U-Net of three levels from optical bands (B, C, H, W) to a SAR-like image (B, sar_channels, H, W)."""

    def __init__(self, config: PeerSize) -> None:
        super().__init__()
        norm, width = norm_layer("group"), config.width
        self.first = ConvNormAct(config.optical_channels, width // 2, 3, norm_layer=norm)
        self.down = nn.ModuleList(
            ConvNormAct(a, width, 3, stride=2, norm_layer=norm) for a in (width // 2, width, width)
        )
        self.up = nn.ModuleList(ConvNormAct(2 * width, width, 3, norm_layer=norm) for _ in range(2))
        self.last = nn.Conv2d(width + width // 2, config.sar_channels, 3, padding=1)

    def forward(self, optical: Tensor) -> Tensor:
        maps = [self.first(optical)]
        for layer in self.down:
            maps.append(layer(maps[-1]))
        x = maps.pop()
        for layer in self.up:
            x = layer(torch.cat([upsample(x, 2), maps.pop()], dim=1))
        translated: Tensor = self.last(torch.cat([upsample(x, 2), maps.pop()], dim=1))
        return translated


class TranslationNet(PeerNet):
    """A small pix2pix: generator and patch discriminator, both conditional on the optical image.

    Adapted: both losses are minimised in one step, each for its own weights. The translated image and the
    SAR image are compared by templates of 65 px as the classical methods are, with the confidence of those.
    """

    def __init__(self, config: PeerSize) -> None:
        super().__init__(config)
        norm, width = norm_layer("group"), config.width
        self.generator = Generator(config)
        self.discriminator = nn.Sequential(
            nn.Conv2d(config.sar_channels + config.optical_channels, width // 2, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            ConvNormAct(width // 2, width, 4, stride=2, norm_layer=norm),
            nn.Conv2d(width, 1, 3, padding=1),
        )

    def describe(self, sar: Tensor, optical: Tensor) -> tuple[Tensor, ...]:
        """The optical image as the generator translates it, (B, sar_channels, H, W)."""
        return (self.generator(optical),)

    def losses(self, batch: Sample, *described: Tensor) -> dict[str, Tensor]:
        optical, size = batch["optical"], (batch["optical"].shape[-2], batch["optical"].shape[-1])
        to_sar = torch.linalg.inv(batch["A_sar_to_optical"].float())
        sar_valid = warp(batch["sar_valid"][:, None].float(), to_sar, size, field=batch["field"])
        valid = sar_valid * batch["optical_valid"][:, None]
        real = warp(batch["sar"], to_sar, size, field=batch["field"]) * valid
        fake = described[0] * valid
        l1 = (fake - real).abs().sum() / valid.sum().clamp(min=1)
        fixed = {name: value.detach() for name, value in self.discriminator.named_parameters()}
        pair = torch.cat([fake, optical], dim=1)
        fooled = functional_call(self.discriminator, fixed, (pair,))
        adversarial = F.softplus(-fooled).mean()
        judged = [self.discriminator(torch.cat([image, optical], dim=1)) for image in (real, fake.detach())]
        discriminator = (F.softplus(-judged[0]).mean() + F.softplus(judged[1]).mean()) / 2
        losses = {"l1": l1, "adversarial": adversarial, "discriminator": discriminator}
        return {"loss": L1_WEIGHT * l1 + adversarial + discriminator, **losses}

    def find(self, sar: Tensor, optical: Tensor, limit: float) -> Matches:
        translated = self.generator(optical)
        radius = limit if limit < torch.inf else None
        return GreyTemplateMatcher().match(sar[0, :1].cpu(), translated[0, :1].cpu(), radius)
