"""Pack the images of any sources into one zip, and the files that may hold captions into another.

The other stages then read one format. Packing the same sources again gives the same bytes.
"""

import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

from pipeline.images.names import EXTENSIONS, first_few, is_image_name, is_unsupported_name
from pipeline.images.zip_files import open_zip
from pipeline.runtime.errors import InputError, pluralize
from pipeline.runtime.files import atomic_write
from pipeline.runtime.progress import progress_bar
from pipeline.sources.containers import TEXT_SUFFIXES, SourceFile, is_text_name, iter_files

log = logging.getLogger(__name__)

SIDECARS = "sidecars.jsonl"  # the captions of text files beside their images
SIDECAR_SUFFIXES = (".txt", ".caption", ".json")  # the first that an image has is read
SIDECAR_KEYS = ("caption", "captions", "text")
# Text files that may lie among samples without being one's captions.
NOT_SIDECARS = re.compile(
    r"^(readme|license|licence|captions|metadata|dataset|annotations|classes|labels|info|results)\b"
    r"|_stats\.json$|token|(^|[^a-z])(train|val|valid|validation|dev|test)(images)?([^a-z]|$)",
    re.IGNORECASE,
)


class SourceSet:
    """All files of several sources, with their paths in the set.

    Numbered shards may repeat their names: then the shard's own name is their folder.
    """

    def __init__(self, sources: Sequence[Path]) -> None:
        listings = [[file.path for file in iter_files(source)] for source in sources]
        images = [path for listing in listings for path in listing if is_image_name(path)]
        self.has_images = bool(images)
        nested = len(sources) > 1 and len(set(images)) < len(images)
        self._folders = {
            source: f"{source.name.split('.')[0]}/" if nested else "" for source in sources
        }
        texts: set[str] = set()
        image_of: dict[str, str] = {}
        self.unsupported: list[str] = []  # image files that cannot be decoded here
        for folder, listing in zip(self._folders.values(), listings, strict=True):
            for path in listing:
                if is_image_name(path):
                    image_of.setdefault(folder + _stem(path), folder + path)
                elif is_unsupported_name(path):
                    self.unsupported.append(folder + path)
                elif path.lower().endswith(SIDECAR_SUFFIXES):
                    texts.add(folder + _stem(path))
        # Images that have a text file of their own name beside them, by that name.
        self.samples = {stem: path for stem, path in image_of.items() if stem in texts}
        self._suffix_in = {_folder(path): PurePosixPath(path).suffix for path in image_of.values()}
        self._sample_folders = set(map(_folder, self.samples.values()))

    def image_of(self, path: str) -> str | None:
        """Return the image that a text file belongs to; None if it does not belong to one.

        Among samples, a text file whose image is gone belongs to an image that is missing.
        """
        stem, name = _stem(path), PurePosixPath(path).name
        if stem in self.samples:
            return self.samples[stem]
        if _folder(path) not in self._sample_folders or NOT_SIDECARS.search(name):
            return None
        return stem + self._suffix_in[_folder(path)]

    def __iter__(self) -> Iterator[tuple[str, SourceFile]]:
        for source, folder in self._folders.items():
            for file in iter_files(source):
                yield folder + file.path, file


def pack(
    sources: Sequence[Path], images: Path | None, texts: Path | None, comment: bytes = b""
) -> None:
    """Write the images of all sources to one zip, and the files that may hold captions to another.

    Tars of samples (WebDataset, img2dataset) may have an image once for each of its captions. Of
    samples whose images have the same bytes, the first image is kept, with the captions of all.

    Args:
        images: None writes no images.
        texts: None writes no captions. Text files beside an image become one table.
        comment: of both zips; `has_comment` tells by it what they were made of.

    Raises:
        InputError: a source is damaged, two files have the same path, or there are no images, or
            no files that may hold captions.
    """
    files = SourceSet(sources)
    if images and not files.has_images:
        found = ""
        if others := files.unsupported:
            count = pluralize(len(others), "file")
            found = f", found {count} of other formats ({first_few(others)}); convert to JPEG"
        expected = " ".join(sorted(EXTENSIONS))
        raise InputError(f"{_names(sources)}: no images; expected {expected}{found}")
    sidecars, repeated = _Sidecars(files), _Repeated(set(files.samples.values()))
    kept: dict[str, bytes] = {}  # text files
    with ExitStack() as stack:
        archive = _open(stack, images, comment) if images else None
        for path, file in progress_bar(files, label="pack", unit="file"):
            if is_image_name(path) or is_unsupported_name(path):  # the latter to be reported
                if archive and not repeated.add(path, content := file.read()):
                    archive.writestr(ZipInfo(path), content)
            elif texts and is_text_name(path) and not sidecars.add(path, file):
                if path in kept:
                    raise InputError(f"two captions files are named {path!r}; rename one")
                kept[path] = file.read()
    if repeated.first_of:
        message = "%s of %s repeated an earlier one byte for byte; the captions go to that one"
        number = pluralize(len(repeated.first_of), "image")
        log.info(message, number, pluralize(len(files.samples), "sample"))
    if texts:
        if table := sidecars.table(repeated.first_of):
            kept[SIDECARS] = table
        if not kept:
            raise InputError(
                f"{_names(sources)}: no files that may hold captions; name a file in download.text "
                f"({' '.join(TEXT_SUFFIXES)}), or a folder or an archive with one"
            )
        with ExitStack() as stack:
            archive = _open(stack, texts, comment)
            for path in sorted(kept):
                archive.writestr(ZipInfo(path), kept[path], ZIP_DEFLATED)


def has_comment(path: Path, comment: bytes) -> bool:
    """Whether there is a whole zip with this comment."""
    try:
        with open_zip(path) as archive:
            return archive.comment == comment
    except InputError:
        return False


def _open(stack: ExitStack, out: Path, comment: bytes) -> ZipFile:
    archive = stack.enter_context(ZipFile(stack.enter_context(atomic_write(out)), "w", ZIP_STORED))
    archive.comment = comment
    return archive


class _Repeated:
    """Finds the samples whose image is an earlier one's, byte for byte."""

    def __init__(self, samples: set[str]) -> None:
        self.first_of: dict[str, str] = {}
        self._samples = samples
        self._seen: dict[bytes, str] = {}  # digest -> path

    def add(self, path: str, content: bytes) -> bool:
        """Return whether an earlier sample has the same image."""
        if path not in self._samples:
            return False
        first = self._seen.setdefault(sha256(content).digest(), path)
        if first != path:
            self.first_of[path] = first
        return first != path


class _Sidecars:
    """The captions of text files that stand beside an image."""

    def __init__(self, files: SourceSet) -> None:
        self._files = files
        self._captions: dict[str, tuple[int, list[str]]] = {}  # image -> rank of suffix, captions

    def add(self, path: str, file: SourceFile) -> bool:
        """Read a file if it stands beside an image; return whether it does.

        Raises:
            InputError: the file is not UTF-8, or not a JSON object.
        """
        suffix = PurePosixPath(path).suffix.lower()
        image = self._files.image_of(path) if suffix in SIDECAR_SUFFIXES else None
        if image is None:
            return False
        rank = SIDECAR_SUFFIXES.index(suffix)
        if image not in self._captions or rank < self._captions[image][0]:
            captions = _sidecar_captions(path, file.read())
            if captions is not None:
                self._captions[image] = rank, captions
        return True

    def table(self, first_of: dict[str, str]) -> bytes:
        """Return all captions as JSON Lines, in the order of the images' paths."""
        return "".join(
            json.dumps({"image": first_of.get(image, image), "caption": caption}) + "\n"
            for image, (_, captions) in sorted(self._captions.items())
            for caption in captions
        ).encode()


def _sidecar_captions(path: str, content: bytes) -> list[str] | None:
    """Return the captions of one image: each line of a text file, or those of a JSON object."""
    try:
        text = content.decode("utf-8-sig")
        if not path.lower().endswith(".json"):
            return [line.strip() for line in text.splitlines() if line.strip()] or [""]
        sample: Any = json.loads(text)
        if not isinstance(sample, dict):
            raise ValueError("not an object")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} beside an image is not UTF-8 at its byte {error.start}; save it as UTF-8"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} beside an image cannot be read ({error}); repair it") from None
    found = next((sample[key] for key in SIDECAR_KEYS if sample.get(key) is not None), None)
    if found is None:
        return None
    captions = found if isinstance(found, list) else [found]
    if not all(isinstance(caption, str) for caption in captions):
        raise InputError(f"{path}: expected the caption to be a text, or a list of texts")
    return [" ".join(caption.split()) for caption in captions]


def _names(sources: Sequence[Path]) -> str:
    return first_few([str(source) for source in sources])


def _stem(path: str) -> str:
    return path.rpartition(".")[0]


def _folder(path: str) -> str:
    return path.rpartition("/")[0]
