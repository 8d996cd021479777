"""Building blocks of the encoders against what they stand for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sarmatch.model.layers import unit_length


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_unit_length_is_normalize_over_channels(dtype: torch.dtype) -> None:
    x = torch.randn(2, 5, 4, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[0, :, 0, 0] = 0
    x[1, :, 1, 1] = 1e-3  # its square is lost in half precision
    found = unit_length(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, F.normalize(x.float(), dim=1), atol=1e-6, rtol=1e-5)


def test_gradient_of_unit_length_is_finite_at_zero() -> None:
    x = torch.zeros(1, 3, 2, 2, requires_grad=True)
    unit_length(x).sum().backward()
    assert torch.isfinite(x.grad).all()
