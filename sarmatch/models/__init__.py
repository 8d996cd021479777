"""Encoders, heads and the matching network."""

from sarmatch.models.encoder import DenseEncoder, Encoding, Prefix
from sarmatch.models.layers import STRIDE, fill_invalid
from sarmatch.models.matcher import Descriptors, SarOpticalNet
from sarmatch.models.optical_encoder import OpticalEncoder
from sarmatch.models.pair import Encoded, PairEncoder, PairInput, encode_image, encode_pair, prepare
from sarmatch.models.sar_encoder import SarEncoder
from sarmatch.models.uncertainty import SOURCES, Uncertainty, UncertaintyMaps

__all__ = [
    "SOURCES",
    "STRIDE",
    "DenseEncoder",
    "Descriptors",
    "Encoded",
    "Encoding",
    "OpticalEncoder",
    "PairEncoder",
    "PairInput",
    "Prefix",
    "SarEncoder",
    "SarOpticalNet",
    "Uncertainty",
    "UncertaintyMaps",
    "encode_image",
    "encode_pair",
    "fill_invalid",
    "prepare",
]
