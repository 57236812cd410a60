"""What it means that the disk refuses, and what to do."""

from __future__ import annotations

import errno

FULL = (errno.ENOSPC, errno.EDQUOT)
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)  # where there are no hard links


def explain(error: OSError) -> str:
    """Say what a disk error means and what to do."""
    advice = {
        errno.ENOSPC: "the disk is full, delete files that you do not need",
        errno.EDQUOT: "the disk quota is used up, delete files that you do not need",
        errno.EROFS: "the folder is read-only, choose another with KIT_WORKING",
        errno.EACCES: "no permission to write there, choose another folder with KIT_WORKING",
        errno.EEXIST: "a file is in its place, choose another folder with KIT_WORKING",
        errno.ENOTDIR: "a file is in its place, choose another folder with KIT_WORKING",
    }
    return advice.get(error.errno or 0, error.strerror or str(error))
