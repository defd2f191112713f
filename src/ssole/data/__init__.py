"""From a folder, parquet file, dataset name or array to batches of decoded images."""
