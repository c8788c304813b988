"""Video files to frames: everything that opens a file runs in a child process that can be killed.

child.py    the parent's side: `Decoder.decode(request)`            imported by the engine
worker.py   the child's side: `python -m aqa_extract.decode.worker`  imports NumPy, PyAV, decord; never torch
wire.py     messages and the shared frame buffer between the two
probe.py    is this a video, and what is its display timeline?
readers.py  the two backends, under one frame semantics
"""
