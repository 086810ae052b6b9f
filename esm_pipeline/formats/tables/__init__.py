"""Tables with any columns: CSV, TSV and Parquet, read and written a block of rows at a time."""
