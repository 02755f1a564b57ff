"""Read CSV tables: encodings, columns, and cell values."""
