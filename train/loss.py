"""NT-Xent, the normalised temperature-scaled cross-entropy of SimCLR."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def nt_xent(z1: torch.Tensor, z2: torch.Tensor, temperature: float) -> torch.Tensor:
    """Mean over 2B anchors of -log softmax(cos / temperature) at the other view of the same image.

    z1, z2: [B, D], row i of both from image i; any scale. Computed in float32 at least, also under autocast, and
    stable for small temperatures. Source: Chen et al., 2020, equation 1.
    """
    with torch.autocast(z1.device.type, enabled=False):
        z = torch.cat([z1, z2])
        z = F.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=1)  # [2B, D]
        similarity = z @ z.T / temperature  # [2B, 2B]
        itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
        similarity = similarity.masked_fill(itself, -torch.inf)
        partner = torch.arange(len(z), device=z.device).roll(len(z1))  # [2B], i ↔ i + B
        return F.cross_entropy(similarity, partner)
