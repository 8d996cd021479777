"""Encoders, heads and the matching network."""

from sarmatch.models.layers import STRIDE, Encoding, fill_invalid
from sarmatch.models.matcher import Descriptors, SarOpticalNet
from sarmatch.models.optical_encoder import OpticalEncoder
from sarmatch.models.sar_encoder import SarEncoder

__all__ = ["STRIDE", "Descriptors", "Encoding", "OpticalEncoder", "SarEncoder", "SarOpticalNet", "fill_invalid"]
