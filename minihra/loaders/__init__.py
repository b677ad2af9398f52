"""Open checkpoints: each family is a table from the names of its tensors to our tree, and a reader of its settings."""
