"""A made world for demos and benchmarks: a diver simulated, judged and filmed, every number of it known."""
