"""Polars for users: typed functions of column names or expressions. The adapter is `aq2_pipeline.udfs.polars`."""

from aq2_pipeline.udfs.polars import dequantize, policy_scheme, quantization_error, quantize, weight_stats

__all__ = ["dequantize", "policy_scheme", "quantization_error", "quantize", "weight_stats"]
