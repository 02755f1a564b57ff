"""Training on several ranks: the process group, collectives and BatchNorm over the joint batch."""
