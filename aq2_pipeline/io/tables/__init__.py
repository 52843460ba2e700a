"""What all formats share: tensors, the rows of a layer table, and how bytes become columns."""
