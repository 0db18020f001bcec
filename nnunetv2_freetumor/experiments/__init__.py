"""Evidence: phantoms, demo, benchmark, study, realism. Nothing outside this wing imports it."""
