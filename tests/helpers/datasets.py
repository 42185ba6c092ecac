"""Small data sets in any form, and the stages that read them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.config.schema import DownloadConfig, PrepareConfig
from pipeline.images.unreadable import write_unreadable
from pipeline.stages.download import download
from pipeline.stages.prepare import prepare
from tests.conftest import make_zip, params

PPM = "P6 1 1 255\nred"  # an image of one pixel, as text


def prepare_config(**changes: Any) -> PrepareConfig:
    return PrepareConfig(**params()["prepare"] | changes)


def download_config(**changes: Any) -> DownloadConfig:
    local = {"images_md5": None, "text": None, "text_md5": None, "retries": 0}
    return DownloadConfig(**params()["download"] | local | changes)


def run_download(folder: Path, images: Any, text: Any = None, **changes: Any) -> Path:
    """Download into `folder`/data; return that folder."""
    out = folder / "data"
    config = download_config(images=_texts(images), text=_texts(text), **changes)
    download(out / "images.zip", out / "text.zip", out / "unreadable_images.csv", config)
    return out


def run_prepare(data: Path, **changes: Any) -> Path:
    """Prepare what is in the folder; return the captions table."""
    table = data / "captions.csv"
    prepare(
        *(data / "text.zip", data / "images.zip", data / "unreadable_images.csv"),
        *(table, data / "excluded.csv"),
        prepare_config(**changes),
    )
    return table


def prepare_text(
    folder: Path, members: Mapping[str, bytes | str], images: Iterable[str], **changes: Any
) -> Path:
    """Prepare a text archive with these members, and images with these names."""
    make_zip(folder / "text.zip", dict(members))
    make_zip(folder / "images.zip", dict.fromkeys(images, PPM))
    write_unreadable(folder / "unreadable_images.csv", {})
    return run_prepare(folder, **changes)


def _texts(sources: Any) -> Any:
    """Paths as params have them."""
    if isinstance(sources, list):
        return [str(source) for source in sources]
    return None if sources is None else str(sources)
