"""Builder of the cache: one process at a time decodes in threads, and resumes a killed build.

Images that another cache in the same folder already holds are copied instead of decoded again."""

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import perf_counter

import numpy as np

from xray_lightning.data.cache import (
    CHUNK,
    CacheManifest,
    Condition,
    ImageSet,
    PixelFile,
    Pixels,
    condition,
    state_of,
)
from xray_lightning.data.decode_resize import DECODER_VERSION, UnreadableImageError, read_gray
from xray_lightning.errors import RunFailedError, UserError, printable
from xray_lightning.files import DISK_FULL, free_bytes, remove_leftovers, write_atomically
from xray_lightning.progress import Advance, Display, unseen
from xray_lightning.workers import in_threads, threads


class CacheBeside:
    """Another cache in the same folder, and its rows of images that the new cache needs, too.

    Raises:
        OSError, ValueError: its sources.json cannot be read, or does not match its manifest.
    """

    def __init__(self, folder: Path, manifest: CacheManifest, images: ImageSet) -> None:
        content = (folder / "sources.json").read_bytes()
        if hashlib.sha256(content).hexdigest() != manifest.sources_sha256:
            raise ValueError(f"{folder}/sources.json is damaged")
        try:
            sources = json.loads(content)
            states = zip(sources["sizes"], sources["mtimes_ns"], strict=True)
            held = {
                path: (row, state)
                for row, (path, state) in enumerate(zip(sources["paths"], states, strict=True))
            }
        except (KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{folder}/sources.json lists no images") from error
        self._folder, self._manifest = folder, manifest
        self._row_of: dict[int, int] = {}  # new cache's row -> row here, for unchanged files
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
        """Open its pixels, and keep only the rows of finished chunks whose checksums match.

        Returns:
            Whether any image can be copied from it.
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
        """Whether the image of this row of the new cache can be copied from it."""
        return row in self._row_of

    def image(self, row: int) -> Pixels:
        return self._pixels.image(self._row_of[row])


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Built:
    """A finished cache, the images that this call decoded or copied for it, and the seconds."""

    folder: Path
    decoded: int = 0
    copied: int = 0
    seconds: float = 0.0


def ensure_cache(
    images: ImageSet,
    *,
    image_size: int,
    cache_dir: Path,
    progress: Display = unseen,
    seed: int = 0,
    verify: bool = False,
) -> Built:
    """Build the cache of these images; chunks that are already finished are kept.

    One process builds while the others wait; if it is killed, its lock is freed and the next one
    goes on from its finished chunks. The lock is `flock`: it works among the processes of a machine
    on any local file system, and among machines if the shared file system supports it (NFS does,
    Lustre if mounted with `flock`). Elsewhere, build the cache before the run: two builders at once
    may fail with an error, though recorded chunks stay right, since both write the same bytes.

    Args:
        progress: display for the long steps.
        seed: seed of the random choice of chunks whose checksums are verified.
        verify: verify all of them.

    Raises:
        UserError: images that cannot be read, all of them counted, the first five named; images
            that change meanwhile; a folder that cannot be written.
        RunFailedError: a full disk. As after any other error, the finished chunks stay.
    """
    key = images.key(image_size)
    folder = cache_dir / key

    def look() -> Condition:
        if not verify:
            return condition(folder, key, seed=seed)
        with progress("checking decoded images", len(images)) as advance:
            return condition(folder, key, every=True, advance=advance)

    try:
        found = look()
        if found.fault is None:
            return Built(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            found = look()
            if found.fault is None:  # another process has built it meanwhile
                return Built(folder)
            return _Builder(images, image_size, folder, progress).build(found)
    except OSError as error:
        raise _told(error, cache_dir) from error


def _told(error: OSError, cache_dir: Path) -> UserError | RunFailedError:
    if error.errno in DISK_FULL:
        return RunFailedError(
            f"data.cache_dir={cache_dir}: {error.strerror}; make room or choose another folder "
            "(what is finished is kept)"
        )
    return UserError(
        f"data.cache_dir={cache_dir} cannot be written ({error}); choose another folder"
    )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, waiting for it; the kernel frees it however its holder ends."""
    from filelock import FileLock, Timeout  # imported here: a run with a finished cache needs none

    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("%s: another process is building this cache; waiting for it", folder)
        lock.acquire(poll_interval=0.2)
    try:
        yield
    finally:
        lock.release()


class _Builder:
    """One building of one cache, by the process that holds its lock."""

    def __init__(self, images: ImageSet, image_size: int, folder: Path, display: Display) -> None:
        self._images = images
        self._image_size = image_size
        self._folder = folder
        self._display = display
        self._beside: list[CacheBeside] = []
        self._unreadable: list[str] = []

    def build(self, found: Condition) -> Built:
        remove_leftovers(self._folder)
        self._manifest = self._read_manifest()
        start = perf_counter()
        with (
            PixelFile(self._folder, self._manifest, writable=True) as self._pixels,
            ExitStack() as others,
        ):
            self._check_room(self._pixels.lay_out())
            wrong = self._forget_what_is_damaged()
            todo = [number for number, crc in enumerate(self._manifest.crc32) if crc is None]
            if found.damaged or wrong:
                damaged = f"pixels.npy is damaged in {len(wrong)} finished chunks"
                log.warning(
                    "%s: %s; %d of %d chunks are decoded again",
                    *(self._folder, found.fault if found.damaged else damaged),
                    *(len(todo), len(self._manifest.crc32)),
                )
            stale = self._find_beside(others)
            rows = [row for chunk in todo for row in self._manifest.rows(chunk)]
            with self._display("decoding images", len(rows)) as advance:
                self._fill(todo, advance)
            copied = sum(any(beside.holds(row) for beside in self._beside) for row in rows)
        for folder in stale:
            _remove(folder)
        return Built(self._folder, len(rows) - copied, copied, perf_counter() - start)

    def _read_manifest(self) -> CacheManifest:
        """The folder's manifest; if it is absent, damaged or another cache's, a new one."""
        try:
            manifest = CacheManifest.read(self._folder)
            if manifest.key == self._folder.name:
                return manifest
        except (FileNotFoundError, ValueError):
            pass
        manifest = CacheManifest.new(self._images, self._image_size)
        write_atomically(self._folder / "sources.json", self._images.sources)
        manifest.write(self._folder)
        return manifest

    def _check_room(self, lacking: int) -> None:
        free = free_bytes(self._folder)
        if lacking > free:
            raise OSError(
                errno.ENOSPC,
                f"the cache needs {lacking / 1e9:.2f} GB more, {free / 1e9:.2f} are free",
            )

    def _forget_what_is_damaged(self) -> list[int]:
        """Record chunks with a wrong checksum as unfinished, before any chunk is written."""
        finished = self._manifest.finished
        if not finished:
            return []
        images = sum(len(self._manifest.rows(chunk)) for chunk in finished)
        with self._display("checking decoded images", images) as advance:
            wrong = self._pixels.damaged(finished, advance=advance)
        for chunk in wrong:
            self._manifest.crc32[chunk] = None
        if wrong:
            self._manifest.write(self._folder)
        return wrong

    def _find_beside(self, others: ExitStack) -> list[Path]:
        """Open the other caches in the folder that hold images of this one; find the stale ones.

        Returns:
            Folders of stale caches: same paths and image size, but other file states or decoder.
        """
        stale = []
        for folder in sorted(self._folder.parent.iterdir()):
            try:
                manifest = CacheManifest.read(folder)
                if folder == self._folder or manifest.image_size != self._image_size:
                    continue
                beside = CacheBeside(folder, manifest, self._images)
                if manifest.paths_sha256 == self._manifest.paths_sha256:
                    stale.append(folder)
                    log.warning(
                        "%s is stale (%s); %s takes its place",
                        *(folder, beside.why_stale(), self._folder.name),
                    )
                with self._display("checking decoded images", manifest.images) as advance:
                    if beside.open(others, advance):
                        self._beside.append(beside)
            except (OSError, ValueError):  # not usable, and not for this build to report
                continue
        return stale

    def _fill(self, todo: list[int], advance: Advance) -> None:
        """Decode these chunks in threads, which read ahead, and write and record each in turn."""
        rows = (row for chunk in todo for row in self._manifest.rows(chunk))
        ahead = 2 * CHUNK + threads()  # so that no thread idles while a chunk is written
        with closing(in_threads(self._image, rows, ahead=ahead)) as images:
            for chunk in todo:
                self._finish(chunk, images, advance)
        if self._unreadable:
            more = f" and {len(self._unreadable) - 5} more" if len(self._unreadable) > 5 else ""
            raise UserError(
                f"{len(self._unreadable)} of {len(self._images)} images cannot be read: "
                f"{'; '.join(self._unreadable[:5])}{more}. Replace the files, or leave their rows "
                "out (what is decoded is kept)"
            )

    def _image(self, row: int) -> Pixels | UnreadableImageError:
        for beside in self._beside:
            if beside.holds(row):
                return beside.image(row)
        try:
            return read_gray(self._images.paths[row], self._image_size)
        except UnreadableImageError as error:
            return error

    def _finish(
        self, chunk: int, images: Iterator[Pixels | UnreadableImageError], advance: Advance
    ) -> None:
        """Wait for a chunk's images; write and record it if all of them could be read."""
        rows = self._manifest.rows(chunk)
        pixels = np.empty((len(rows), self._image_size, self._image_size), dtype=np.uint8)
        readable = True
        for place, image in enumerate(islice(images, len(rows))):
            if isinstance(image, UnreadableImageError):
                self._unreadable.append(str(image))
                readable = False
            else:
                pixels[place] = image
            advance(1)
        if readable:
            self._check_unchanged(rows)
            self._manifest.crc32[chunk] = self._pixels.write(chunk, pixels)
            self._manifest.write(self._folder)

    def _check_unchanged(self, rows: range) -> None:
        """Raise if a file's size or modification time is no longer the one in the cache's key."""
        for row, state in zip(rows, self._images.states[rows].tolist(), strict=True):
            path = self._images.paths[row]
            if not os.path.exists(path) or state_of(path) != tuple(state):
                raise UserError(f"{path} changed while it was decoded; start again")


def _remove(folder: Path) -> None:
    """Remove a stale cache, unless someone is building it."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder / "lock", timeout=0):
            shutil.rmtree(folder)
            log.info("%s, which was stale, is removed", folder)
    except (Timeout, OSError) as error:
        log.warning("%s, which is stale, could not be removed (%s)", folder, error)
