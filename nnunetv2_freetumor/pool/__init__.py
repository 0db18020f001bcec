"""Unlabeled CT in, pool cases and their share of a training's batches out."""
