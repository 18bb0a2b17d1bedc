"""The work of a stream in several threads, or on a Dask cluster."""
