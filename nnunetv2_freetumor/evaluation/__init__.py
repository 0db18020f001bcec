"""Label maps in, lesion-level scores, tables and a page out."""
