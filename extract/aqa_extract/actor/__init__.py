"""The actor: people on single frames (`ssd.load_detector`) → one track and its crops (`track.follow`)."""
