"""Metrics of a batch's embeddings, which show whether views find their partner and whether embeddings collapse."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from train.distributed.collectives import all_gather

MAX_IMAGES = 1024  # memory grows with the square


@torch.no_grad()
def embedding_metrics(z1: torch.Tensor, z2: torch.Tensor, patients: torch.Tensor | None = None) -> dict[str, float]:
    """Compute metrics of the joint batch from z1 and z2, each [B, D] on every rank, row i of both from image i.

    positive_similarity, negative_similarity: mean cosine of two views of one image, and of different images.
    alignment: mean squared distance of two views of an image. uniformity: log of the mean exp(-2 d²) over all pairs of
    views (Wang & Isola, 2020, on the sphere; lower is better for both). embedding_rank: exp of the entropy of the
    singular values (RankMe, Garrido et al., 2023), 1 if all embeddings lie on a line. top1: fraction of views whose
    nearest other view is their partner. same_patient_pairs, if `patients` [N] of the joint batch are given: fraction
    of image pairs that show one patient. All but the last are of the first 1,024 images.
    """
    z, _ = all_gather(F.normalize(torch.stack([z1, z2]).float(), dim=-1), dim=1)  # [2, N, D]
    z = z[:, :MAX_IMAGES]
    images = z.shape[1]
    both = z.flatten(0, 1)  # [2N, D]
    cosine = both @ both.T
    partner = torch.arange(2 * images, device=z.device).roll(images)
    positive = cosine.gather(1, partner[:, None]).mean()
    off_diagonal = ~torch.eye(2 * images, dtype=torch.bool, device=z.device)
    negative = off_diagonal.clone().scatter_(1, partner[:, None], False)
    distance = 2 - 2 * cosine  # squared
    nearest = cosine.masked_fill(~off_diagonal, -torch.inf).argmax(1)
    singular = torch.linalg.svdvals(both)
    share = singular / singular.sum().clamp_min(torch.finfo(singular.dtype).tiny) + 1e-7  # all values may be zero
    metrics = {
        "positive_similarity": positive,
        "negative_similarity": cosine[negative].mean(),
        "alignment": 2 - 2 * positive,
        "uniformity": torch.exp(-2 * distance[off_diagonal]).mean().log(),
        "embedding_rank": torch.exp(-(share * share.log()).sum()),
        "top1": (nearest == partner).float().mean(),
    }
    if patients is not None:
        alike = patients[:, None] == patients
        metrics["same_patient_pairs"] = (alike.sum() - len(patients)) / max(1, len(patients) * (len(patients) - 1))
    values = torch.stack(list(metrics.values())).tolist()  # one synchronization with the device
    return dict(zip(metrics, values, strict=True))
