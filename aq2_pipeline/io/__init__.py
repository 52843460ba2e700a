"""Files as layer tables, each format in a module of its own."""
