"""A folder of pictures as a video: what MTL-AQA, FineDiving and AQA-7 are passed around as.

    00489.jpg, 00490.jpg, …  +  pictures per second   ──▶   Folder (for VideoFile) ─▶ Probe ─▶ PicturesReader

Frame i is the i-th picture by its number. Only those that are wanted are read, by Pillow, because the published
features of these folders were made with it. A number that is missing is a frame that is missing: the picture before it
is shown longer. A picture that cannot be read is damaged, as a frame of a video is, and named.
"""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from aqa_extract.decode.colour import Colour
from aqa_extract.decode.failure import DecodeFailure
from aqa_extract.decode.packets import MISMATCH
from aqa_extract.decode.probe import Probe, refuse_shape
from aqa_extract.decode.readers import Tally
from aqa_extract.decode.source import too_large
from aqa_extract.identity import picture_names, size_and_time
from aqa_shared.manifest_files import few

if TYPE_CHECKING:
    from PIL import Image

CONTAINER = "pictures"
LARGEST = 256 << 20
"""Bytes of one picture."""
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")
"""Of Pillow, all of 8 bits."""
NAMED = 5


class Folder:
    """The pictures of a folder in their order; what `VideoFile` is for a file."""

    def __init__(self, path: str, rate: float) -> None:
        self.path, self.rate = path, rate
        try:
            names = picture_names(path)
            self.size, self.mtime_ns = size_and_time(path)
        except OSError as e:
            theirs = isinstance(e, FileNotFoundError | NotADirectoryError | PermissionError)
            raise DecodeFailure("unreadable" if theirs else "read_error", "probe", e.strerror or str(e)) from e
        if not names:
            raise DecodeFailure("no_frames", "probe", "a folder without .jpg, .jpeg or .png in it")
        found = [re.fullmatch(r"(.*?)(\d+)\.[A-Za-z]+", name) for name in names]
        numbers = [int(match[2]) for match in found if match]
        sound = len(numbers) == len(names) == len(set(numbers)) and len({match[1] for match in found if match}) == 1
        self.numbers: list[int] | None = sorted(numbers) if sound else None
        """None where the names do not count the pictures; then they are in the order of their names."""
        self.names = [name for _, name in sorted(zip(numbers, names, strict=True))] if sound else sorted(names)
        self.damaged: list[str] = []

    def close(self) -> None:
        """Nothing is kept open."""

    def read_through(self) -> None:
        """Read what seemed damaged once more. Raises OSError where the disk or the network does not give it."""
        for name in self.damaged:
            with open(os.path.join(self.path, name), "rb") as file:
                while file.read(1 << 20):
                    pass

    def check_unchanged(self) -> None:
        """Raises `changed_during_read` when pictures came, went or were rewritten."""
        try:
            same = size_and_time(self.path) == (self.size, self.mtime_ns)
        except OSError:
            same = False
        if not same:
            detail = "the folder changed while it was read; run again once it is whole"
            raise DecodeFailure("changed_during_read", "decode", detail)

    def picture(self, index: int, max_pixels: int) -> tuple[np.ndarray, Image.Image] | str:
        """Frame `index` as uint8 (H, W, 3), turned as its EXIF tag says, and what Pillow knows of it; or what is wrong.

        Raises DecodeFailure: `too_large`, and `read_error` where the disk fails.
        """
        from PIL import Image, ImageOps

        Image.MAX_IMAGE_PIXELS = None  # ours is below
        data = self._bytes(self.names[index])
        if isinstance(data, str):
            return data
        try:
            with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
                if image.width * image.height > max_pixels:
                    raise too_large(image.width, image.height, max_pixels)
                if image.mode not in MODES:
                    return f"pixels of {image.mode}, not of 8 bits"
                image.load()
                # Zeros in place of the rest, as half a download leaves them, are not an error to Pillow.
                # Behind its end a camera may have put more; in entropy-coded data the marker cannot occur.
                if image.format != "PNG" and b"\xff\xd9" not in data[data.rfind(b"\xff\xda") :]:
                    return "truncated"
                return np.asarray(ImageOps.exif_transpose(image).convert("RGB")), image
        except (DecodeFailure, MemoryError):
            raise
        except Exception as e:  # damaged pictures raise nearly anything
            return str(e).splitlines()[0][:100] if str(e) and "BytesIO" not in str(e) else "not a JPEG or PNG picture"

    def _bytes(self, name: str) -> bytes | str:
        path = os.path.join(self.path, name)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(fd, "rb") as file:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode):
                    return "not a file"
                if status.st_size > LARGEST:
                    return f"larger than {LARGEST >> 20} MiB"
                return file.read() or "empty"
        except (FileNotFoundError, PermissionError) as e:
            return e.strerror or str(e)
        except OSError as e:
            raise DecodeFailure("read_error", "decode", f"{name}: {e.strerror or e}") from e


def probe(folder: Folder, max_pixels: int, accept_damaged: bool = False) -> Probe:
    """List the pictures and read the first that can be read.

    Raises:
        DecodeFailure: `frame_count_mismatch` where numbers are missing, `undecodable`, `too_small`, `too_large`,
            `bad_shape`.
    """
    times, missing = _timeline(folder)
    warnings = []
    if missing:
        detail = f"{len(missing)} of {len(missing) + len(times)} pictures are missing: number {few(missing, NAMED)}"
        refused = len(missing) > MISMATCH * (len(missing) + len(times))
        if refused and not accept_damaged:
            raise DecodeFailure("frame_count_mismatch", "probe", f"{detail}; --accept-damaged takes what there is")
        warnings.append(f"{'damaged, and accepted' if refused else 'degraded'}: {detail}")
    if folder.numbers is None and len(folder.names) > 1:
        warnings.append("the names do not count the pictures: taken in the order of their names")
    first = next((p for i in range(len(times)) if not isinstance(p := folder.picture(i, max_pixels), str)), None)
    if first is None:
        folder.damaged = folder.names[:NAMED]
        detail = f"none of {len(times)} pictures can be read; {folder.names[0]}: {folder.picture(0, max_pixels)}"
        raise DecodeFailure("undecodable", "probe", detail)
    rgb, image = first
    height, width = rgb.shape[:2]
    refuse_shape(width, height, (width, height), max_pixels)
    gaps = np.diff(times)
    return Probe(
        container=CONTAINER,
        codec="png" if image.format == "PNG" else "mjpeg",
        pix_fmt=image.mode,
        width=width,
        height=height,
        frame_width=width,
        frame_height=height,
        sample_aspect_ratio="1:1",
        rotation=0,
        mirrored=False,
        # JFIF knows one matrix and range only.
        colour=Colour("unknown", "unknown", "gbr" if image.format == "PNG" else "bt470bg", "pc", "", ""),
        fps=folder.rate,
        n_expected=len(times),
        times=times,
        first_pts=None,
        missing=len(missing) if len(missing) > MISMATCH * (len(missing) + len(times)) else 0,
        has_edit_list=False,
        vfr=bool(len(gaps)) and bool(gaps.max() > 1.5 * np.median(gaps)),
        interlaced=False,
        headless=False,
        n_video_streams=1,
        size=folder.size,
        mtime_ns=folder.mtime_ns,
        warnings=tuple(warnings),
    )


def _timeline(folder: Folder) -> tuple[np.ndarray, list[int]]:
    """Seconds of every picture from 0, and the numbers that are missing between them."""
    if folder.numbers is None or len(folder.numbers) < 2:
        return np.arange(len(folder.names)) / folder.rate, []
    numbers = np.array(folder.numbers)
    # Every fifth frame may have been kept, under its own number.
    steps, counts = np.unique(np.diff(numbers), return_counts=True)
    step = int(steps[counts.argmax()])
    if np.any(np.diff(numbers) % step):
        return np.arange(len(numbers)) / folder.rate, []
    slots = (numbers - numbers[0]) // step
    missing = np.setdiff1d(np.arange(slots[-1] + 1), slots) if slots[-1] < 4 * len(slots) else np.empty(0, int)
    if not len(missing):
        slots = np.arange(len(slots))
    return slots / folder.rate, [int(m) * step + int(numbers[0]) for m in missing]


class PicturesReader:
    """Reads the wanted pictures, and no others."""

    def __init__(self, folder: Folder, probe: Probe, max_pixels: int) -> None:
        import PIL

        self.folder, self.probe, self.max_pixels = folder, probe, max_pixels
        self.tally = Tally("pillow", PIL.__version__)

    def read(self, wanted: Sequence[int], end: int | None) -> Iterator[np.ndarray]:
        """As `AvReader.read`. In place of a damaged picture stands the one that was read before it, or the first."""
        tally, shape = self.tally, (self.probe.frame_height, self.probe.frame_width, 3)
        tally.decoded = self.probe.n_expected if end is None else end
        tally.skipped = tally.decoded - len(set(wanted))
        tally.complete = end is None
        now, shown = -1, None
        for index in wanted:
            if index != now:
                now = index
                found = self.folder.picture(index, self.max_pixels)
                if isinstance(found, str):
                    self._damaged(index, found)
                else:
                    shown = found[0]
                    if shown.shape != shape:
                        raise DecodeFailure(
                            "resolution_change",
                            "decode",
                            f"{self.folder.names[index]} is {shown.shape[1]}x{shown.shape[0]}, the first is "
                            f"{shape[1]}x{shape[0]}; make them one size",
                            tally.backend,
                        )
            if shown is None:
                good = (self.folder.picture(i, self.max_pixels) for i in range(self.probe.n_expected))
                shown = next(picture[0] for picture in good if not isinstance(picture, str))
            yield shown

    def _damaged(self, index: int, what: str) -> None:
        name = self.folder.names[index]
        self.folder.damaged.append(name)
        self.tally.damage.pictures.add(f"{name} ({what})")
