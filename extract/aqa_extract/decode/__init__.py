"""Video files to frames: everything that opens a file runs in a child process that can be killed.

child.py    the parent's side: `Decoder.decode(request)`            imported by the loaders
worker.py   the child's side: `python -m aqa_extract.decode.worker`  imports NumPy, PyAV, decord; never torch
process.py  that process as the parent holds it: started, timed, killed, buried
wire.py     messages and the shared frame buffer between the two
source.py   opening a file that nobody vouches for
packets.py  what its packets say
probe.py    is this a video, and what is its display timeline?
shape.py    how a picture is turned, and how wide its pixels are
colour.py   matrix, range, HDR: to RGB as an SDR screen shows it
seek.py     where decoding may begin later than at the first frame, and the proof that it did
damage.py   which pictures are damaged
pictures.py a folder of pictures as a video
readers.py  what a frame is, and PyAV's reader
decord_backend.py  decord's reader, where it may be used, and what proves its frames
"""
