"""NT-Xent, the normalised temperature-scaled cross-entropy of SimCLR."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from train.distributed.collectives import all_gather
from train.presets import SamePatient


def nt_xent(
    z1: torch.Tensor, z2: torch.Tensor, temperature: float, patients: torch.Tensor | None = None,
    same_patient: SamePatient = "negatives",
) -> torch.Tensor:  # fmt: skip
    """Mean over 2B anchors of -log softmax(cos / temperature) at the other view of the same image.

    z1, z2: [B, D], row i of both from image i; any scale. With ranks, an anchor is compared with the views of all of
    them, and the mean over ranks of what each returns is the loss of the joint batch. Computed in float32 at least,
    also under autocast, and stable for small temperatures. Source: Chen et al., 2020, equation 1.

    patients: [B·world], a number for each image's patient. The views of an anchor's patient's other images are
    negatives as all others; or masked, left out of its softmax; or positives, of which, the other view among them, the
    mean of -log softmax is taken (Khosla et al., 2020, "Supervised contrastive learning", equation 2).
    """
    with torch.autocast(z1.device.type, enabled=False):
        z = torch.stack([z1, z2])
        z = F.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=-1)  # [2, B, D]
        everyone, first = all_gather(z, dim=1)  # [2, B·world, D], ours from `first` on
        similarity = z.flatten(0, 1) @ everyone.flatten(0, 1).T / temperature  # [2B, 2B·world]
        ours = first + torch.arange(z.shape[1], device=z.device)
        itself = torch.cat([ours, ours + everyone.shape[1]])  # [2B], the column of each anchor
        partner = itself.roll(z.shape[1])  # [2B], and of the other view of its image
        similarity = similarity.scatter(1, itself[:, None], -torch.inf)
        if same_patient == "negatives":
            return F.cross_entropy(similarity, partner)
        assert patients is not None
        alike = (patients[ours][:, None] == patients).tile(2, 2)  # [2B, 2B·world], itself and its partner among them
        if same_patient == "masked":
            others = alike.scatter(1, torch.stack([itself, partner], 1), False)
            return F.cross_entropy(similarity.masked_fill(others, -torch.inf), partner)
        positives = alike.scatter(1, itself[:, None], False)
        # Of itself the logarithm is -inf, and 0 times that no number.
        likely = F.log_softmax(similarity, dim=1).masked_fill(~positives, 0.0)
        return -(likely.sum(1) / positives.sum(1)).mean()
