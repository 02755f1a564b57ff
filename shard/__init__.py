"""Offline sharder: table → images → tar + index → manifest. Knows nothing of training."""
