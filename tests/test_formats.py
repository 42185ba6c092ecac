"""Every format of captions and images: the same data set in another format gives the same table."""

import hashlib
import json
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.captions.table import read_info, read_table
from pipeline.images.archive import ImageArchive
from pipeline.runtime.errors import InputError
from tests.conftest import SHARED, make_zip
from tests.helpers.datasets import PPM, run_download, run_prepare
from tests.helpers.formats import (
    FORMATS,
    DataSet,
    Sources,
    json_lines,
    small_data,
    token_zip,
    webdataset,
    write_tar,
)
from tests.helpers.server import serving


def made(data: DataSet, write: Callable[[DataSet, Path], Sources], folder: Path) -> Path:
    """Write the data in this format, then download and prepare it; return the outputs' folder."""
    source = folder / "source"
    source.mkdir(parents=True)
    sources = write(data, source)
    out = run_download(folder, sources.images, sources.text)
    run_prepare(out, **sources.prepare)
    return out


def table_rows(out: Path) -> list[list[str]]:
    """The table's rows, without the folders of image ids, sorted by image."""
    rows = read_table(out / "captions.csv").rows
    rows["image_id"] = rows["image_id"].str.rpartition("/")[2]
    return rows.sort_values("image_id", kind="stable").to_numpy().tolist()


def image_bytes(out: Path) -> dict[str, bytes]:
    with ImageArchive(out / "images.zip") as archive:
        return {image_id.rpartition("/")[2]: archive.read(image_id) for image_id in archive.ids}


@pytest.mark.parametrize("write", FORMATS, ids=lambda write: write.__name__)
def test_every_format_gives_the_same_table_and_images(
    write: Callable[[DataSet, Path], Sources], tmp_path: Path
) -> None:
    data = small_data()
    expected = made(data, token_zip, tmp_path / "token")
    out = made(data, write, tmp_path / "format")
    assert table_rows(out) == table_rows(expected)
    assert image_bytes(out) == image_bytes(expected) == data.images
    infos = [read_info(path / "captions.csv") for path in (out, expected)]
    assert infos[0].split_digest == infos[1].split_digest
    assert infos[0].split == "lists"


def test_tars_of_samples_have_their_captions_beside_the_images(tmp_path: Path) -> None:
    data = small_data(60)
    out = made(data, webdataset, tmp_path / "tars")
    assert image_bytes(out) == data.images
    rows = read_table(out / "captions.csv").rows
    assert dict(Counter(rows["image_id"])) == {k: len(v) for k, v in data.captions.items()}
    source = webdataset(data, tmp_path / "again")
    table = tmp_path / "splits.csv"
    table.write_text("image,split\n" + "".join(f"{k},{v}\n" for k, v in data.splits.items()))
    with_splits = run_download(tmp_path, source.images, [source.images, table])
    run_prepare(with_splits)
    assert table_rows(with_splits) == table_rows(made(data, token_zip, tmp_path / "token"))


@pytest.mark.parametrize("packing", ["folder", "zip", "tar.gz", "folder of tars"])
def test_images_come_from_any_container(tmp_path: Path, packing: str) -> None:
    data = small_data()
    source = tmp_path / "source"
    source.mkdir()
    sources = json_lines(data, source)
    names = {f"deep/{name}": content for name, content in data.images.items()}
    images = {
        "folder": lambda: sources.images,
        "zip": lambda: make_zip(tmp_path / "x.zip", dict(names)),
        "tar.gz": lambda: write_tar(tmp_path / "x.tar.gz", names.items(), "w:gz"),
        "folder of tars": lambda: write_tar(tmp_path / "tars/x.tar", names.items()).parent,
    }[packing]()
    out = run_download(tmp_path, images, sources.text)
    run_prepare(out)
    assert table_rows(out) == table_rows(made(data, token_zip, tmp_path / "token"))
    assert image_bytes(out) == data.images


def test_packing_again_gives_the_same_bytes(tmp_path: Path) -> None:
    data = small_data()
    source = webdataset(data, tmp_path)
    digests = []
    for folder in ("one", "two"):
        out = run_download(tmp_path / folder, source.images)
        digests.append(
            [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.iterdir())]
        )
    assert digests[0] == digests[1]


def test_img2datasets_repeated_images_become_one_with_all_captions(tmp_path: Path) -> None:
    """Its recipe for COCO has one sample per caption."""
    data = small_data(40)
    members: list[tuple[str, bytes]] = []
    for number, (name, caption, _) in enumerate(data.rows()):
        sample = {"caption": caption, "url": f"http://x/{name}", "status": "success"}
        members += [
            (f"{number:09d}.jpg", data.images[name]),
            (f"{number:09d}.txt", caption.encode()),
            (f"{number:09d}.json", json.dumps(sample).encode()),
        ]
    write_tar(tmp_path / "shards/00000.tar", members)
    (tmp_path / "shards/00000_stats.json").write_text("{}")
    out = run_download(tmp_path, tmp_path / "shards")
    run_prepare(out)
    assert sorted(image_bytes(out).values()) == sorted(data.images.values())
    captions = read_table(out / "captions.csv").rows.groupby("image_id")["caption"].apply(list)
    assert sorted(captions) == sorted(data.captions.values())


def test_equal_names_in_two_folders_are_two_images(tmp_path: Path) -> None:
    names = [f"{folder}/{n}.jpg" for folder in "ab" for n in range(30)]
    images = make_zip(tmp_path / "photos.zip", {f"photos/{name}": PPM for name in names})
    table = tmp_path / "captions.csv"
    table.write_text("image,caption\n" + "".join(f"{name},in folder {name[0]}\n" for name in names))
    out = run_download(tmp_path, images, table)
    run_prepare(out)
    rows = read_table(out / "captions.csv").rows
    assert rows["image_id"].tolist() == sorted(names)
    assert all(rows["tokens"] == "in folder " + rows["image_id"].str[0])
    table.write_text("image,caption\n1.jpg,a dog\n")
    out = run_download(tmp_path, images, table)
    message = r"'1\.jpg', which may be 2 images: 'a/1\.jpg', 'b/1\.jpg'; write the folder too"
    with pytest.raises(InputError, match=message):
        run_prepare(out)


@pytest.mark.parametrize("named", ["{}", "photos/{}", "/home/me/photos/{}", "C:\\photos\\{}"])
def test_captions_may_name_the_base_name_or_a_longer_path(tmp_path: Path, named: str) -> None:
    names = [f"{n}.jpg" for n in range(60)]
    images = make_zip(tmp_path / "p.zip", {f"in/{n}.jpg"[3 * (n % 2) :]: PPM for n in range(60)})
    table = tmp_path / "captions.csv"
    table.write_text("image,caption\n" + "".join(f"{named.format(n)},a dog\n" for n in names))
    out = run_download(tmp_path, images, table)
    if "photos" in named:  # `photos/0.jpg` is not `in/0.jpg`
        with pytest.raises(InputError, match=r"30 images that .* lacks: "):
            run_prepare(out)
    else:
        run_prepare(out, val_fraction=0.3, test_fraction=0.3)


def test_sources_are_fetched_once_and_packed(tmp_path: Path) -> None:
    data = small_data()
    source = tmp_path / "source"
    source.mkdir()
    sources = token_zip(data, source)
    half = dict(list(data.images.items())[:12])
    rest = {name: content for name, content in data.images.items() if name not in half}
    tar, archive = write_tar(source / "a.tar", half.items()), make_zip(source / "b.zip", dict(rest))
    md5s = [hashlib.md5(path.read_bytes()).hexdigest() for path in (tar, archive)]
    with serving(tar.read_bytes()) as one, serving(archive.read_bytes()) as two:
        urls = [f"{one.url}/a.tar", f"{two.url}/b.zip"]
        for _ in range(2):
            out = run_download(tmp_path, urls, sources.text, images_md5=md5s)
        assert len(one.requests) == len(two.requests) == 1
    assert image_bytes(out) == data.images
    assert {path.name for path in out.iterdir()} == {
        *("images.zip", "text.zip", "unreadable_images.csv")
    }


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataSet, list[list[str]]]:
    """Flickr8k's captions and splits, and its table; the images are single pixels here."""
    data = flickr8k()
    return data, table_rows(made(data, token_zip, tmp_path_factory.mktemp("token")))


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs Flickr8k in ../shared")
@pytest.mark.parametrize("write", FORMATS[1:], ids=lambda write: write.__name__)
def test_flickr8k_itself_in_every_format(
    write: Callable[[DataSet, Path], Sources],
    tmp_path: Path,
    real: tuple[DataSet, list[list[str]]],
) -> None:
    data, expected = real
    out = made(data, write, tmp_path / "format")
    assert table_rows(out) == expected
    assert read_info(out / "captions.csv").split == "official"


def flickr8k() -> DataSet:
    with zipfile.ZipFile(SHARED / "flickr8k/Flickr8k_text.zip") as archive:
        files = {Path(name).name: archive.read(name).decode() for name in archive.namelist()}
    captions: dict[str, list[str]] = {}
    splits = {
        name: split
        for split, file in (("train", "train"), ("val", "dev"), ("test", "test"))
        for name in files[f"Flickr_8k.{file}Images.txt"].split()
    }
    for line in files["Flickr8k.token.txt"].splitlines():
        key, caption = line.split("\t")
        if (name := key.partition("#")[0]) in splits:
            captions.setdefault(name, []).append(caption)
    return DataSet(dict.fromkeys(captions, PPM.encode()), captions, splits)
