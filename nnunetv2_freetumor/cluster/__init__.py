"""A function and many cases: run them in this process, in several, or on a dask cluster, and report on each."""
