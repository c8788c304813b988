"""Extraction by the workers of a Dask cluster: `blocks` says what is sent, `workers` to whom, `worker` what they do."""
