"""Parquet files of quantized layers."""
