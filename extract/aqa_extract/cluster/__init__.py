"""Extraction by the workers of a Dask cluster: `blocks` says what is sent, `worker` what they do with it."""
