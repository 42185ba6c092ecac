"""Stage 1: the two archives of Flickr8k, fetched or copied, and checked.

An archive that is already in place with the right digest is not fetched again (`persist: true` in
dvc.yaml keeps DVC from deleting it), so a change of another param costs nothing.
"""

import logging
import os
import shutil
import urllib.parse
import zipfile
from pathlib import Path
from typing import Annotated

import typer

from pipeline.config import read
from pipeline.config.download import DownloadConfig
from pipeline.errors import InputError
from pipeline.progress import bar
from pipeline.store.fetch import fetch
from pipeline.store.files import atomic, file_digest
from pipeline.store.pictures import PictureArchive, open_zip
from pipeline.store.text import KAGGLE, STRAY, TextArchive, kaggle_member, read_text_archive

log = logging.getLogger(__name__)


def download(images: Path, text: Path, config: DownloadConfig) -> None:
    """Put the picture archive at `images` and the text archive at `text`, checked.

    Raises:
        InputError: a source cannot be had, has another digest, or its content does not fit
            together; what is wrong is named.
    """
    obtain(config.images, images, config.images_md5, config, key="images")
    if config.text is None:
        _text_from_kaggle(images, text)
    else:
        obtain(config.text, text, config.text_md5, config, key="text")
    check_content(images, text, verify_checksums=config.images_md5 is None)


def obtain(source: str, out: Path, md5: str | None, config: DownloadConfig, key: str) -> None:
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
    path = _local_path(source, address)
    if not path.is_file():
        raise InputError(f"download.{key} names {path}, which is no file; check the path")
    if md5 is not None and (found := file_digest(path)) != md5:
        raise InputError(
            f"{path} has MD5 {found}, but download.{key}_md5 is {md5}; "
            "it is another file, or damaged"
        )
    with open_zip(path), atomic(out) as scratch:
        shutil.copyfile(path, scratch)


def _local_path(source: str, address: urllib.parse.SplitResult) -> Path:
    if address.scheme == "file":
        return Path(urllib.parse.unquote(address.path))
    if "://" in source:
        raise InputError(
            f"cannot fetch {source}: give an http://, https:// or file:// address, or a path"
        )
    return Path(os.path.expanduser(source))  # noqa: PTH111  Path's own raises of unknown users


def _text_from_kaggle(images: Path, text: Path) -> None:
    """A text archive of its own, always the same bytes, from Kaggle's single zip."""
    captions = kaggle_member(images)
    if captions is None:
        raise InputError(
            f"download.text is null, but {images} holds no {KAGGLE}; name the text archive"
        )
    with atomic(text) as scratch, zipfile.ZipFile(scratch, "w") as archive:
        archive.writestr(zipfile.ZipInfo(KAGGLE), captions, zipfile.ZIP_DEFLATED)


def check_content(images: Path, text: Path, verify_checksums: bool) -> None:
    """Every picture of a split is there and has captions; what else does not match is named.

    Args:
        verify_checksums: also unpack every picture, for archives whose digest nobody vouched for.
    """
    captions = read_text_archive(text)
    with PictureArchive(images) as archive:
        present = set(archive.ids)
        for image_id in needed_ids(captions):
            if image_id not in present:
                raise InputError(f"{text} needs the picture {image_id!r}, which {images} lacks")
            if not captions.captions.get(image_id):
                raise InputError(f"{text} has no captions for {image_id!r}, which is in a split")
        for image_id in sorted(present - captions.captions.keys()):
            log.warning("passed over: %s has no captions", image_id)
        for image_id in sorted(captions.captions.keys() - present - STRAY):
            log.warning("passed over: captions of %s, which has no picture", image_id)
        if verify_checksums:
            for image_id in bar(archive.ids, label="check", unit="picture"):
                if not archive.content(image_id):
                    raise InputError(f"{images}: the picture {image_id} is empty")
    log.info("%d pictures, %d with captions", len(present), len(present & captions.captions.keys()))


def needed_ids(text: TextArchive) -> list[str]:
    """Pictures that must be there: those of the split lists, else all that have captions."""
    if text.splits is None:
        return sorted(text.captions.keys() - STRAY)
    return [image_id for ids in text.splits.values() for image_id in ids]


def main(
    images: Annotated[Path, typer.Option(help="Where to put the picture archive.")],
    text: Annotated[Path, typer.Option(help="Where to put the text archive.")],
    params: Annotated[Path, typer.Option(help="The params file.")] = Path("params.yaml"),
) -> None:
    """Fetch and check the archives of pictures and captions."""
    download(images, text, read(params, DownloadConfig))
