"""Shards → batches of two augmented views on the device."""
