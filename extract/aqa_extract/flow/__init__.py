"""Optical flow: grey frames → TV-L1 (`tvl1.tvl1`) → network input (`inputs.to_input`)."""
