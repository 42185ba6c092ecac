"""Stage 1: bring images and captions here, as one zip each, and check the images.

An archive that is already in place with the right digest is not fetched again: `persist: true` in
dvc.yaml keeps DVC from deleting it.
"""

import logging
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import typer

from pipeline.config.load import load_params
from pipeline.config.schema import DownloadConfig
from pipeline.images.archive import ImageArchive
from pipeline.images.decode import decode_image
from pipeline.images.names import first_few
from pipeline.images.unreadable import write_unreadable
from pipeline.images.zip_files import open_zip
from pipeline.runtime import options
from pipeline.runtime.errors import InputError, pluralize
from pipeline.runtime.files import atomic_write, file_digest
from pipeline.runtime.progress import progress_bar
from pipeline.sources.fetch import fetch
from pipeline.sources.gather import Source, check_md5, gathered, parse_sources
from pipeline.sources.pack import has_comment, pack

log = logging.getLogger(__name__)


def download(images: Path, text: Path, unreadable: Path, config: DownloadConfig) -> None:
    """Get images and captions as one zip each, and list the images that cannot be used.

    A single zip stays as it is. Any other sources (folders, tars, several zips, bare files) are
    packed into one.

    Raises:
        InputError: a source is unavailable, damaged or has another digest, or images are bad.
    """
    sources = parse_sources(config.images, config.images_md5, "download.images")
    texts = text if config.text is None else None  # captions that come with the images
    if _is_single_zip(sources):
        _fetch_or_copy(sources[0], images, config)
        if texts:
            pack([images], None, texts)
    else:
        _pack(sources, images, texts, config)
    if config.text is not None:
        sources = parse_sources(config.text, config.text_md5, "download.text")
        if _is_single_zip(sources):
            _fetch_or_copy(sources[0], text, config)
        else:
            _pack(sources, None, text, config)
    check_images(images, unreadable, config)


def _is_single_zip(sources: list[Source]) -> bool:
    return len(sources) == 1 and sources[0].is_zip()


def _fetch_or_copy(source: Source, out: Path, config: DownloadConfig) -> None:
    """Fetch a zip or copy a local one to `out`, and check its digest."""
    if source.md5 is not None and out.is_file() and file_digest(out) == source.md5:
        log.info("%s is already here, with the right digest", out)
    elif source.url is not None:
        fetch(source.url, out, source.md5, retries=config.retries, timeout=config.timeout)
    else:
        (path,) = source.paths()
        check_md5(path, source.md5, source.key)
        with open_zip(path), atomic_write(out) as scratch:
            shutil.copyfile(path, scratch)


def _pack(
    sources: list[Source], images: Path | None, texts: Path | None, config: DownloadConfig
) -> None:
    """Pack sources, unless archives of sources with the same digests are here already."""
    outs = [out for out in (images, texts) if out]
    digests = [source.md5 for source in sources if source.md5]
    comment = " ".join(["md5", *digests]).encode() if digests else b""
    if digests and all(has_comment(out, comment) for out in outs):
        log.info("%s: already here, of sources with the right digests", ", ".join(map(str, outs)))
        return
    with gathered(sources, outs[0].parent, retries=config.retries, timeout=config.timeout) as paths:
        pack(paths, images, texts, comment)


def check_images(images: Path, unreadable: Path, config: DownloadConfig) -> None:
    """Write the list of images that cannot be used.

    Images of an archive with a known digest are not decoded, unless bad ones are to be set aside.

    Raises:
        InputError: some images cannot be used, and params do not allow it, or not so many.
    """
    errors: dict[str, str] = {}
    with ImageArchive(images) as archive:
        ids = archive.ids
        if config.images_md5 is None or config.on_bad_image == "exclude":
            errors = _decode_all(archive) | {
                path: f"{path} is of an unsupported format ({suffix}); convert it to JPEG"
                for path, suffix in archive.unsupported.items()
            }
    log.info("%s", pluralize(len(ids), "image"))
    if errors:
        what = f"{images}: {next(iter(errors.values()))}"
        if len(errors) > 1:
            what = (
                f"{len(errors):,} of {len(ids):,} images in {images} cannot be used: "
                f"{first_few(list(errors))}; the lines above say why"
            )
            for error in errors.values():
                log.warning("%s", error)
        share = len(errors) / len({*ids, *errors})
        if config.on_bad_image == "fail":
            raise InputError(f"{what}; or set download.on_bad_image to exclude")
        if share > config.max_excluded or errors.keys() >= set(ids):
            limit = f"download.max_excluded ({config.max_excluded:g})"
            raise InputError(f"{what}; that is {share:.1%} of the images, more than {limit}")
        log.warning("set aside: %s", what)
    write_unreadable(unreadable, errors)


def _decode_all(archive: ImageArchive) -> dict[str, str]:
    """Decode all images; return why the bad ones cannot be used, sorted by id."""
    errors: dict[str, str] = {}

    def check(image_id: str) -> None:
        try:
            decode_image(archive.read(image_id), image_id)
        except InputError as error:
            errors[image_id] = str(error)

    with (
        ThreadPoolExecutor(os.cpu_count() or 1) as pool,  # Pillow releases Python's lock
        progress_bar(label="check", total=len(archive.ids), unit="image") as progress,
    ):
        for _ in pool.map(check, archive.ids):
            progress.update()
    return dict(sorted(errors.items()))


def main(
    images: Annotated[Path, typer.Option(help="The image archive to write.")] = Path(
        "data/images.zip"
    ),
    text: Annotated[Path, typer.Option(help="The text archive to write.")] = Path("data/text.zip"),
    unreadable: Annotated[
        Path, typer.Option(help="The list of images that cannot be used, to write (CSV).")
    ] = Path("data/unreadable_images.csv"),
    params: options.Params = Path("params.yaml"),
) -> None:
    """Bring images and captions here, and check the images."""
    download(images, text, unreadable, load_params(params, DownloadConfig))
