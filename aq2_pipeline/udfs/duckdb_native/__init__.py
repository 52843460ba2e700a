"""DuckDB: the functions as native ones, from Python and Numba alone, through DuckDB's exported C API.

`capi` declares what is used of the API; `installing` makes DuckDB call us when a
database opens; `binding` checks a call's arguments when a statement is bound;
`general` runs any function on any types through Arrow columns; `bodies` are the
Numba bodies for the ordinary, without Python; `plans` keeps the schemes' tables
that bodies read. A body that meets anything out of the ordinary declines, and
the general one runs: so results and texts of errors have one source.
"""
