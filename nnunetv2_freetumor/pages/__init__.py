"""Arrays in, PNG sheets and self-contained HTML pages out."""
