"""transformers classes for pruned models: the same files that exported folders carry. Importing one needs torch."""
