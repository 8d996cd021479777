"""Encoders, heads and the matching network."""

from sarmatch.model.encoders import DenseEncoder, Encoding, OpticalEncoder, Prefix, SarEncoder
from sarmatch.model.layers import STRIDE, fill_invalid
from sarmatch.model.network import Descriptors, SarOpticalNet
from sarmatch.model.pair import Encoded, PairEncoder, PairInput, encode_image, encode_pair, prepare
from sarmatch.model.uncertainty import SOURCES, Uncertainty, UncertaintyMaps

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
