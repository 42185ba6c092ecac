"""Stage 1: fetch or copy the two archives, images and text, and check them.

An archive that is already in place with the right digest is not fetched again: `persist: true` in
dvc.yaml keeps DVC from deleting it.
"""

import logging
import os
import shlex
import shutil
import urllib.parse
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer

from pipeline.config.load import load_params
from pipeline.config.schema import DownloadConfig
from pipeline.images.archive import ImageArchive, decode_image
from pipeline.images.names import MAX_SHOWN, first_few, similar_names
from pipeline.images.zip_files import open_zip
from pipeline.runtime import options
from pipeline.runtime.errors import InputError, pluralize
from pipeline.runtime.files import atomic_write, file_digest, named_file
from pipeline.runtime.progress import progress_bar
from pipeline.sources.fetch import fetch
from pipeline.sources.flickr8k import (
    KAGGLE,
    ORPHAN_CAPTIONS,
    TextArchive,
    read_kaggle_table,
    read_text_archive,
)

log = logging.getLogger(__name__)

UNZIPPED = (".csv", ".tsv", ".txt", ".json")  # suffixes of captions outside a zip


def download(images: Path, text: Path, config: DownloadConfig) -> None:
    """Get the image archive and the text archive, and check them.

    Raises:
        InputError: a source is unavailable or has another digest, or the archives do not fit
            together.
    """
    fetch_or_copy(config.images, images, config.images_md5, config, key="images")
    if config.text is None:
        _text_from_kaggle(images, text)
    else:
        fetch_or_copy(config.text, text, config.text_md5, config, key="text")
    check_archives(images, text, decode=config.images_md5 is None)


def fetch_or_copy(
    source: str, out: Path, md5: str | None, config: DownloadConfig, key: str
) -> None:
    """Fetch a URL or copy a local file to `out`, and check its digest."""
    if md5 is not None and out.is_file() and file_digest(out) == md5:
        log.info("%s is already here, with the right digest", out)
        return
    try:
        url = urllib.parse.urlsplit(source)
    except ValueError as error:
        raise InputError(f"download.{key} is {source}, not a URL ({error}); check it") from None
    if url.scheme in ("http", "https"):
        fetch(source, out, md5, retries=config.retries, timeout=config.timeout)
        return
    path = _local_path(source, url, f"download.{key}")
    if md5 is not None and (digest := file_digest(path)) != md5:
        raise InputError(
            f"{path} has MD5 {digest}, but download.{key}_md5 is {md5}; "
            "it is another file, or damaged"
        )
    with open_zip(path), atomic_write(out) as scratch:
        shutil.copyfile(path, scratch)


def _local_path(source: str, url: urllib.parse.SplitResult, key: str) -> Path:
    """Return the path of a local archive.

    Raises:
        InputError: there is no such file, or it cannot be a zip.
    """
    if url.scheme == "file":
        source = urllib.parse.unquote(url.path)
    elif "://" in source:
        raise InputError(
            f"cannot fetch {source}: expected an http://, https:// or file:// URL, or a path"
        )
    path = Path(os.path.expanduser(source))  # noqa: PTH111  Path.expanduser raises for unknown users
    if path.is_dir() or path.suffix.lower() in UNZIPPED:
        what = "a folder" if path.is_dir() else "not a zip"
        raise InputError(
            f"{key} names {source}, which is {what}; zip it and use that path: "
            f"python -m zipfile -c {path.stem}.zip {shlex.quote(source)}"
        )
    return named_file(source, key)


def _text_from_kaggle(images: Path, text: Path) -> None:
    """Copy the captions of Kaggle's single zip to a text archive, always with the same bytes."""
    captions = read_kaggle_table(images)
    with atomic_write(text) as scratch, zipfile.ZipFile(scratch, "w") as archive:
        archive.writestr(zipfile.ZipInfo(KAGGLE), captions, zipfile.ZIP_DEFLATED)


def check_archives(images: Path, text: Path, decode: bool) -> None:
    """Check that every image of a split is present and has captions; log other mismatches.

    Args:
        decode: also decode every image, for an archive without a known digest.
    """
    captions = read_text_archive(text)
    with ImageArchive(images) as archive:
        present, captioned = set(archive.ids), captions.captions.keys()
        required = required_ids(captions)
        if missing := [image_id for image_id in required if image_id not in present]:
            raise InputError(f"{text} needs {_explain_missing(missing, archive)}")
        if uncaptioned := [
            image_id for image_id in required if not captions.captions.get(image_id)
        ]:
            raise InputError(
                f"{text} has no captions for {pluralize(len(uncaptioned), 'image')} of a split: "
                f"{first_few(uncaptioned)}; add captions, or remove the images from the list"
            )
        if uncaptioned := sorted(present - captioned):
            number = pluralize(len(uncaptioned), "image")
            log.warning("skipped %s without captions: %s", number, first_few(uncaptioned))
        if absent := sorted(captioned - present - ORPHAN_CAPTIONS):
            number = pluralize(len(absent), "missing image")
            log.warning("skipped the captions of %s: %s", number, first_few(absent))
        if decode:
            _check_images(archive)
    log.info("%s, %d with captions", pluralize(len(present), "image"), len(present & captioned))


def _explain_missing(missing: list[str], archive: ImageArchive) -> str:
    """Return which images are missing, and a likely reason."""
    if unsupported := [name for name in missing if name in archive.other_files]:
        kinds = ", ".join(
            sorted({PurePosixPath(name).suffix or "no suffix" for name in unsupported})
        )
        return (
            f"{pluralize(len(unsupported), 'image')} of an unsupported format ({kinds}) in "
            f"{archive.path}: {first_few(unsupported)}; convert to JPEG, or remove the captions"
        )
    similar = similar_names(missing, archive.ids)
    shown = sorted(missing, key=lambda name: name not in similar)[:MAX_SHOWN]
    hints = [f"{name!r} is named {similar[name]!r} there" for name in shown if name in similar]
    hint = f"{'; '.join(hints)}: use one name" if hints else "add them, or remove their captions"
    number = pluralize(len(missing), "image")
    return f"{number} that {archive.path} lacks: {first_few(missing)}; {hint}"


def _check_images(archive: ImageArchive) -> None:
    """Decode all images, and report all bad ones at once, not one per run.

    Raises:
        InputError: some images cannot be used.
    """
    errors: dict[str, str] = {}
    ids, workers = archive.ids, os.cpu_count() or 1

    def check(image_id: str) -> None:
        try:
            decode_image(archive.read(image_id), image_id)
        except InputError as error:
            errors[image_id] = str(error)

    with (
        ThreadPoolExecutor(workers) as pool,  # Pillow releases Python's lock
        progress_bar(label="check", total=len(ids), unit="image") as progress,
    ):
        for _ in pool.map(check, ids):
            progress.update()
    if len(errors) == 1:
        raise InputError(f"{archive.path}: {next(iter(errors.values()))}")
    if errors:
        for _, error in sorted(errors.items()):
            log.warning("%s", error)
        raise InputError(
            f"{len(errors):,} of {len(ids):,} images in {archive.path} cannot be used: "
            f"{first_few(sorted(errors))}; the lines above say why"
        )


def required_ids(text: TextArchive) -> list[str]:
    """Return the images that must be present: those of the split lists, else all with captions."""
    if text.splits is None:
        return sorted(text.captions.keys() - ORPHAN_CAPTIONS)
    return [image_id for ids in text.splits.values() for image_id in ids]


def main(
    images: Annotated[Path, typer.Option(help="The image archive to write.")] = Path(
        "data/images.zip"
    ),
    text: Annotated[Path, typer.Option(help="The text archive to write.")] = Path("data/text.zip"),
    params: options.Params = Path("params.yaml"),
) -> None:
    """Fetch and check the archives of images and captions."""
    download(images, text, load_params(params, DownloadConfig))
