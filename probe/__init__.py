"""Few-shot linear probing of frozen features: Scratch, ImageNet, SimCLR."""
