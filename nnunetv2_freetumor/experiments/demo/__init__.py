"""The full pipeline on CT phantoms, from planning to a report page."""
