"""Stage 1: the two archives of Flickr8k, fetched or copied, and checked.

An archive that is already in place with the right digest is not fetched again (`persist: true` in
dvc.yaml keeps DVC from deleting it), so a change of another param costs nothing.
"""

import logging
import os
import shlex
import shutil
import urllib.parse
import zipfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer

from pipeline.config.load import load_params
from pipeline.config.schema import DownloadConfig
from pipeline.images.archive import ImageArchive, decode_image
from pipeline.images.names import SHOWN, alike, some
from pipeline.images.zip_files import open_zip
from pipeline.runtime.errors import InputError, counted
from pipeline.runtime.files import atomic_write, file_digest, named_file
from pipeline.runtime.progress import progress_bar
from pipeline.sources.fetch import fetch
from pipeline.sources.flickr8k import (
    KAGGLE,
    ORPHAN_CAPTIONS,
    TABLES,
    TextArchive,
    kaggle_member,
    read_text_archive,
)

log = logging.getLogger(__name__)

LOOSE = (".csv", ".tsv", ".txt", ".json")  # captions that are in no zip


def download(images: Path, text: Path, config: DownloadConfig) -> None:
    """Put the image archive at `images` and the text archive at `text`, checked.

    Raises:
        InputError: a source cannot be had, has another digest, or its content does not fit
            together; what is wrong is named.
    """
    fetch_or_copy(config.images, images, config.images_md5, config, key="images")
    if config.text is None:
        _text_from_kaggle(images, text)
    else:
        fetch_or_copy(config.text, text, config.text_md5, config, key="text")
    check_content(images, text, decode=config.images_md5 is None)


def fetch_or_copy(
    source: str, out: Path, md5: str | None, config: DownloadConfig, key: str
) -> None:
    """Fetch an address or copy a local file to `out`, and check its digest."""
    if md5 is not None and out.is_file() and file_digest(out) == md5:
        log.info("%s is already here, with the right digest", out)
        return
    try:
        address = urllib.parse.urlsplit(source)
    except ValueError as error:
        raise InputError(f"download.{key} is {source}, no address ({error}); check it") from None
    if address.scheme in ("http", "https"):
        fetch(source, out, md5, retries=config.retries, timeout=config.timeout)
        return
    path = _local_path(source, address, f"download.{key}")
    if md5 is not None and (found := file_digest(path)) != md5:
        raise InputError(
            f"{path} has MD5 {found}, but download.{key}_md5 is {md5}; "
            "it is another file, or damaged"
        )
    with open_zip(path), atomic_write(out) as scratch:
        shutil.copyfile(path, scratch)


def _local_path(source: str, address: urllib.parse.SplitResult, key: str) -> Path:
    """
    Raises:
        InputError: there is no such file, or none that is a zip could be.
    """
    if address.scheme == "file":
        source = urllib.parse.unquote(address.path)
    elif "://" in source:
        raise InputError(
            f"cannot fetch {source}: give an http://, https:// or file:// address, or a path"
        )
    path = Path(os.path.expanduser(source))  # noqa: PTH111  Path's own raises of unknown users
    if path.is_dir() or path.suffix.lower() in LOOSE:
        what = "a folder" if path.is_dir() else "no zip"
        raise InputError(
            f"{key} names {source}, which is {what}; make a zip of it and name that: "
            f"python -m zipfile -c {path.stem}.zip {shlex.quote(source)}"
        )
    return named_file(source, key)


def _text_from_kaggle(images: Path, text: Path) -> None:
    """A text archive of its own, always the same bytes, from Kaggle's single zip."""
    captions = kaggle_member(images)
    if captions is None:
        raise InputError(
            f"download.text is null, but {images} holds no captions ({' or '.join(TABLES)}); "
            "name the text archive"
        )
    with atomic_write(text) as scratch, zipfile.ZipFile(scratch, "w") as archive:
        archive.writestr(zipfile.ZipInfo(KAGGLE), captions, zipfile.ZIP_DEFLATED)


def check_content(images: Path, text: Path, decode: bool) -> None:
    """Every image of a split is there and has captions; what else does not match is named.

    Args:
        decode: also unpack and decode every image, of archives whose digest nobody vouched for.
    """
    captions = read_text_archive(text)
    with ImageArchive(images) as archive:
        present = set(archive.ids)
        needed = required_ids(captions)
        if missing := [one for one in needed if one not in present]:
            raise InputError(f"{text} needs {_missing(missing, archive)}")
        if silent := [one for one in needed if not captions.captions.get(one)]:
            raise InputError(
                f"{text} has no captions for {counted(len(silent), 'image')} of a split: "
                f"{some(silent)}; add some, or take them out of the list"
            )
        if without := sorted(present - captions.captions.keys()):
            log.warning(
                "skipped: %s without captions: %s",
                *(counted(len(without), "image"), some(without)),
            )
        if lost := sorted(captions.captions.keys() - present - ORPHAN_CAPTIONS):
            log.warning(
                "skipped: captions of %s that %s not there: %s",
                *(counted(len(lost), "image"), "is" if len(lost) == 1 else "are", some(lost)),
            )
        if decode:
            _check_images(archive)
    log.info(
        "%s, %d with captions",
        *(counted(len(present), "image"), len(present & captions.captions.keys())),
    )


def _missing(missing: list[str], archive: ImageArchive) -> str:
    """Which images, and why they may be missing."""
    if unread := [one for one in missing if one in archive.others]:
        kinds = ", ".join(sorted({PurePosixPath(one).suffix or "no suffix" for one in unread}))
        return (
            f"{counted(len(unread), 'image')} of a kind that is not read ({kinds}), which "
            f"{archive.path} has: {some(unread)}; convert them to JPEG, or take their captions out"
        )
    meant = alike(missing, archive.ids)
    shown = sorted(missing, key=lambda one: one not in meant)[:SHOWN]
    hints = [f"{one!r} is called {meant[one]!r} there" for one in shown if one in meant]
    hint = f"{'; '.join(hints)}: call both the same" if hints else "add them, or take them out"
    return f"{counted(len(missing), 'image')} that {archive.path} lacks: {some(missing)}; {hint}"


def _check_images(archive: ImageArchive) -> None:
    """All that cannot be used are named at once: found one by one, each would cost a run.

    Raises:
        InputError: some cannot.
    """
    bad: dict[str, str] = {}
    ids, workers = archive.ids, os.cpu_count() or 1
    with (
        ThreadPoolExecutor(workers) as pool,  # Pillow decodes outside Python's lock
        progress_bar(label="check", total=len(ids), unit="image") as progress,
    ):
        for begin in range(0, len(ids), 4 * workers):
            part = ids[begin : begin + 4 * workers]
            decoded: dict[str, Future[None]] = {}
            for one in part:
                try:  # read here: the zip's handle is not shared
                    decoded[one] = pool.submit(_decode, archive.content(one), one)
                except InputError as error:
                    bad[one] = str(error)
            for one, future in decoded.items():
                try:
                    future.result()
                except InputError as error:
                    bad[one] = str(error)
            progress.update(len(part))
    if len(bad) == 1:
        raise InputError(f"{archive.path}: {next(iter(bad.values()))}")
    if bad:
        for _, why in sorted(bad.items()):
            log.warning("%s", why)
        raise InputError(
            f"{len(bad):,} of {len(ids):,} images in {archive.path} cannot be used: "
            f"{some(sorted(bad))}; the lines above say why, mend them all at once"
        )


def _decode(content: bytes, name: str) -> None:
    decode_image(content, name)  # and let go of it: it may be a gigabyte


def required_ids(text: TextArchive) -> list[str]:
    """Images that must be there: those of the split lists, else all that have captions."""
    if text.splits is None:
        return sorted(text.captions.keys() - ORPHAN_CAPTIONS)
    return [image_id for ids in text.splits.values() for image_id in ids]


def main(
    images: Annotated[Path, typer.Option(help="The image archive to write.")] = Path(
        "data/images.zip"
    ),
    text: Annotated[Path, typer.Option(help="The text archive to write.")] = Path("data/text.zip"),
    params: Annotated[Path, typer.Option(help="The params file.")] = Path("params.yaml"),
) -> None:
    """Fetch and check the archives of images and captions."""
    download(images, text, load_params(params, DownloadConfig))
