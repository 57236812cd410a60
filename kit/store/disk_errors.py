"""What an error of the disk means, and what to do."""

from __future__ import annotations

import errno

from kit.errors import StorageError

FULL = (errno.ENOSPC, errno.EDQUOT)
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)  # where there are no hard links
DELETE, ELSEWHERE = "Delete files that you do not need.", "Choose another folder with KIT_WORKING."
MEANINGS = {
    errno.ENOSPC: ("the disk is full", DELETE),
    errno.EDQUOT: ("the disk quota is used up", DELETE),
    errno.EROFS: ("the folder is read-only", ELSEWHERE),
    errno.EACCES: ("no permission to write there", ELSEWHERE),
    errno.EEXIST: ("a file is in its place", ELSEWHERE),
    errno.ENOTDIR: ("a file is in its place", ELSEWHERE),
}


def refused(what: str, error: OSError, *, published: bool = False) -> StorageError:
    """Return the exception for what the disk refused: why, and what to do.

    Args:
        what: That could not be done, as «'FILE' could not be written».
        error: The disk's own.
        published: The file is in its place all the same.
    """
    why, hint = MEANINGS.get(error.errno or 0, (error.strerror or str(error), ""))
    return StorageError(f"{what}: {why}.", hint, full=error.errno in FULL, published=published)
