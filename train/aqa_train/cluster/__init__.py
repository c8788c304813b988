"""Training by the workers of a Dask cluster: `trainings` says who does what, `worker` what they do with it."""
