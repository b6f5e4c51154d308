"""Files and folders that no other user of this machine can read, whatever the umask."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def make_private_folder(folder: Path) -> None:
    """Make a folder and those above it, as far as they are missing, for this user alone.

    Raises
    ------
    OSError
        When it cannot be made.

    """
    # The mode that `Path.mkdir` takes is not that of the folders above, which the umask rules.
    for missing in reversed([part for part in (folder, *folder.parents) if not part.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "Not a directory", str(folder))


def write_private_file(path: Path, text: str) -> None:
    """Write a new file in place of one that may be there, and be open to others."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
