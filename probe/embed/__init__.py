"""Features of images as a Parquet file: python -m probe embed."""
