"""JPEG files at the level of segments and entropy-coded data: check, repair, strip metadata (ITU-T T.81)."""
