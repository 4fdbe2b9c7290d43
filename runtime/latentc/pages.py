"""What of a mapped file is in memory: reads through it without keeping it, and lets go of it.

A page of a mapped file comes into memory when it is touched, and counts as the process's until it is let go. Letting go
loses nothing: the page can be read again, from the kernel's cache or from the disk.
"""

import hashlib
import mmap

BLOCK_BYTES = 2**22  # of a file in memory while it is hashed; a multiple of every page size


def sha256_of(view: memoryview) -> str:
    """The hash of a mapped file, in hex; of a file larger than a block nothing stays in memory."""
    if len(view) <= BLOCK_BYTES:
        return hashlib.sha256(view).hexdigest()
    digest = hashlib.sha256()
    for start in range(0, len(view), BLOCK_BYTES):
        digest.update(view[start : start + BLOCK_BYTES])
        release(view, start, min(BLOCK_BYTES, len(view) - start))
    return digest.hexdigest()


def release(view: memoryview, start: int = 0, num_bytes: int | None = None) -> None:
    """Lets go of a part of a mapped file (`start` is a multiple of the page size), or of all of it.

    Does nothing where `view` is no whole mapped file, or where the system has no such call.
    """
    advice = getattr(mmap, "MADV_DONTNEED", None)
    if advice is not None and isinstance(view.obj, mmap.mmap) and len(view) == len(view.obj):
        view.obj.madvise(advice, start, len(view) - start if num_bytes is None else num_bytes)
