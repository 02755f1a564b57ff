"""Reading CSV tables: encodings, columns, and the values of their cells."""
