from __future__ import annotations

import torch

from gptcli.model.config import RopeConfig, YarnScaling
from gptcli.model.rope import rotary_table


def test_a_base_of_nearly_1_rotates_all_channels_slowly() -> None:
    """The ramp of YaRN then ends beyond whole numbers of 64 bits, so every frequency is divided by the factor."""
    scaling = YarnScaling(factor=4.0, original_context=1 << 24, magnitude=1.0, beta_fast=1e-9, beta_slow=1e-9)
    rope = RopeConfig(theta=1 + 2**-52, dim=4096, scaling=scaling)
    cos, _ = rotary_table(rope, 3, 3, torch.device("cpu"), torch.float32)
    torch.testing.assert_close(cos[:, 0, 0], torch.cos(torch.arange(3) / 4))
