"""Encoders, heads and the matching network."""

from sarmatch.models.encoder import DenseEncoder, Encoding, Prefix
from sarmatch.models.layers import STRIDE, fill_invalid
from sarmatch.models.matcher import Descriptors, SarOpticalNet
from sarmatch.models.optical_encoder import OpticalEncoder
from sarmatch.models.sar_encoder import SarEncoder
from sarmatch.models.uncertainty import SOURCES, Uncertainty, UncertaintyMaps

__all__ = [
    "SOURCES",
    "STRIDE",
    "DenseEncoder",
    "Descriptors",
    "Encoding",
    "OpticalEncoder",
    "Prefix",
    "SarEncoder",
    "SarOpticalNet",
    "Uncertainty",
    "UncertaintyMaps",
    "fill_invalid",
]
