"""A classifier that tells real lesions from synthetic ones."""
