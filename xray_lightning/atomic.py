"""Files that are whole at every moment."""

import os
import tempfile
from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write beside the file, then rename: a kill leaves the old content or the new, never half.

    Args:
        path: in a folder that exists.
        content: text is written as UTF-8.

    Raises:
        OSError: it cannot be written; the old file is untouched, and nothing is left beside it.
    """
    data = content.encode() if isinstance(content, str) else content
    # A part of the name says whose leftover it is, and stays below the 255 bytes of a file name.
    handle, partial = tempfile.mkstemp(prefix=f".{path.name[:40]}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(partial, 0o644)  # mkstemp gives a file that only its owner may read
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
