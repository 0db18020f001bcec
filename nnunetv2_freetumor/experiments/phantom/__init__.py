"""CT phantoms with organs, vessels and grown tumors."""
