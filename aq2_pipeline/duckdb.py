"""DuckDB for users: `register(con)`, then the functions in SQL. The adapter is `aq2_pipeline.udfs.duckdb`."""

from aq2_pipeline.udfs.duckdb import register, unregister

__all__ = ["register", "unregister"]
