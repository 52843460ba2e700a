"""One adapter an engine: a loop over the table of functions, and the engine's own conversion."""
