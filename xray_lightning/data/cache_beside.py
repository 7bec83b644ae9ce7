"""What a cache that lies beside the one that is built can lend it: images decoded already."""

import hashlib
import json
from contextlib import ExitStack
from pathlib import Path

from xray_lightning.data.cache_folder import CHUNK, CacheManifest, PixelFile, Pixels
from xray_lightning.data.image_set import ImageSet
from xray_lightning.data.images import DECODER_VERSION
from xray_lightning.errors import printable
from xray_lightning.progress import Advance


class CacheBeside:
    """Another cache in the same folder, and where it holds images of the one that is built.

    Raises:
        OSError, ValueError: its list of sources cannot be read, or is not what its manifest says.
    """

    def __init__(self, folder: Path, manifest: CacheManifest, images: ImageSet) -> None:
        content = (folder / "sources.json").read_bytes()
        if hashlib.sha256(content).hexdigest() != manifest.sources_sha256:
            raise ValueError(f"{folder}/sources.json is damaged")
        sources = json.loads(content)
        states = zip(sources["sizes"], sources["mtimes_ns"], strict=True)
        held = {
            path: (row, state)
            for row, (path, state) in enumerate(zip(sources["paths"], states, strict=True))
        }
        self._folder, self._manifest = folder, manifest
        self._row_of: dict[int, int] = {}  # its row of each of our rows whose file is unchanged
        self._changed = []
        for row, (path, state) in enumerate(
            zip(images.paths, map(tuple, images.states.tolist()), strict=True)
        ):
            if path not in held:
                continue
            at, its_state = held[path]
            if its_state == state:
                self._row_of[row] = at
            else:
                self._changed.append(path)

    def why_stale(self) -> str:
        if self._manifest.decoder != DECODER_VERSION:
            return f"made by decoder {self._manifest.decoder}, not {DECODER_VERSION}"
        first = printable(self._changed[0])
        return f"{len(self._changed)} of {self._manifest.images} images changed, the first {first}"

    def open(self, others: ExitStack, advance: Advance) -> bool:
        """Open its pixels, and let go of all that its checksums do not vouch for.

        Returns:
            Whether there is an image to take from it.
        """
        if self._manifest.decoder != DECODER_VERSION or not self._row_of:
            return False
        self._pixels = others.enter_context(PixelFile(self._folder, self._manifest))
        wanted = {row // CHUNK for row in self._row_of.values()} & set(self._manifest.finished)
        if not wanted or self._pixels.fault() is not None:
            return False
        sound = wanted.difference(self._pixels.damaged(sorted(wanted), advance=advance))
        self._row_of = {row: at for row, at in self._row_of.items() if at // CHUNK in sound}
        return bool(self._row_of)

    def holds(self, row: int) -> bool:
        """Whether it has the image of this row of ours."""
        return row in self._row_of

    def image(self, row: int) -> Pixels:
        return self._pixels.image(self._row_of[row])
