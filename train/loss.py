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
    """Return the mean over 2B anchors of -log softmax(cos / temperature) at the other view of the same image.

    z1, z2: [B, D], row i of both from image i; any scale. With several ranks an anchor is compared with the views of
    all ranks, and the mean of the ranks' losses is the loss of the joint batch. Computes in float32 or wider, even
    under autocast, and is stable for small temperatures. Source: Chen et al., 2020, equation 1.

    patients: [B·world], the patient number of each image. same_patient: whether views of the patient's other images are
    negatives; masked, that is excluded from the softmax; or positives, like the other view. The loss of several
    positives is their mean (Khosla et al., 2020, "Supervised contrastive learning", equation 2).
    """
    with torch.autocast(z1.device.type, enabled=False):
        z = torch.stack([z1, z2])
        z = F.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=-1)  # [2, B, D]
        gathered, offset = all_gather(z, dim=1)  # [2, B·world, D], this rank's from `offset` on
        similarity = z.flatten(0, 1) @ gathered.flatten(0, 1).T / temperature  # [2B, 2B·world]
        own = offset + torch.arange(z.shape[1], device=z.device)
        anchor = torch.cat([own, own + gathered.shape[1]])  # [2B], each anchor's own column
        partner = anchor.roll(z.shape[1])  # [2B], the column of the other view of its image
        similarity = similarity.scatter(1, anchor[:, None], -torch.inf)
        if same_patient == "negatives":
            return F.cross_entropy(similarity, partner)
        assert patients is not None
        same = (patients[own][:, None] == patients).tile(2, 2)  # [2B, 2B·world], including the anchor and its partner
        if same_patient == "masked":
            others = same.scatter(1, torch.stack([anchor, partner], 1), False)
            return F.cross_entropy(similarity.masked_fill(others, -torch.inf), partner)
        positives = same.scatter(1, anchor[:, None], False)
        # masked_fill, because the anchor's own log-probability is -inf, and 0 * -inf is NaN.
        log_probability = F.log_softmax(similarity, dim=1).masked_fill(~positives, 0.0)
        return -(log_probability.sum(1) / positives.sum(1)).mean()
