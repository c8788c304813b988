"""The actor: people on single frames (`ssd`) → one person followed through all of them, and his crops (`find`)."""
