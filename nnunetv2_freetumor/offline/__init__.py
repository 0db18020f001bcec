"""CT in, planted cases and datasets with their provenance out; nothing is trained."""
