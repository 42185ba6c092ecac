"""The download stage: the sources of the archives, and the checks of their content."""

import hashlib
import logging
import re
from pathlib import Path

import pytest

from pipeline.runtime.errors import InputError
from tests.conftest import Artifacts, make_zip, one_line, showtell, write_params
from tests.helpers.datasets import PPM, run_download, run_prepare
from tests.helpers.server import serving


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def flickr(folder: Path, **changes: str) -> tuple[Path, Path]:
    """A tiny Flickr8k; `changes` replaces files, or removes them with ''."""
    images = {f"Flicker8k_Dataset/{name}.jpg": PPM for name in "abc"}
    images |= {"__MACOSX/Flicker8k_Dataset/._a.jpg": "junk", "Flicker8k_Dataset/": ""}
    text = {
        "Flickr8k.token.txt": "".join(
            f"{name}.jpg#{i}\tA dog {i} .\n" for name in "abc" for i in range(2)
        )
        + "2258277193_586949ec62.jpg.1#0\tA stray .\n",
        "Flickr_8k.trainImages.txt": "a.jpg\n",
        "Flickr_8k.devImages.txt": "b.jpg\r\n",
        "Flickr_8k.testImages.txt": "c.jpg",
        "__MACOSX/._Flickr8k.token.txt": "junk",
        "readme.txt": "ignored",
    }
    for name, content in changes.items():
        part = images if name.endswith(".jpg") else text
        part[name] = content
    images = {k: v for k, v in images.items() if v or k.endswith("/")}
    return (
        make_zip(folder / "images.zip", images),  # type: ignore[arg-type]
        make_zip(folder / "text.zip", {k: v for k, v in text.items() if v}),
    )


def run(folder: Path, images: object, text: object, **more: object) -> Path:
    """Download, then prepare; return the folder of both."""
    out = run_download(folder, images, text, **more)
    run_prepare(out)
    return out


def test_a_local_path_a_file_url_and_a_mirror_give_the_same(tmp_path: Path) -> None:
    images, text = flickr(tmp_path)
    with serving(images.read_bytes()) as server:
        for number, source in enumerate([str(images), images.as_uri(), server.url]):
            folder = tmp_path / str(number)
            folder.mkdir()
            out = run(folder, source, text, images_md5=md5(images), text_md5=md5(text))
            assert (out / "images.zip").read_bytes() == images.read_bytes()
            assert (out / "text.zip").read_bytes() == text.read_bytes()


def test_an_archive_that_is_already_here_is_not_fetched_again(tmp_path: Path) -> None:
    images, text = flickr(tmp_path)
    with serving(images.read_bytes()) as server:
        for _ in range(2):
            run(tmp_path, server.url, text, images_md5=md5(images))
        assert len(server.requests) == 1


def test_orphan_captions_and_macos_junk_are_skipped_silently(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run(tmp_path, *flickr(tmp_path))
    assert caplog.messages[:2] == [
        "3 images",
        "6 captions of 3 images: 1 in train, 1 in val, 1 in test",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Flicker8k_Dataset/b.jpg": ""}, r"1 image that .* lacks: 'b\.jpg'"),
        (
            {"Flicker8k_Dataset/extra.jpg": PPM},
            r"1 image without captions: 'extra\.jpg'; .* set prepare\.on_mismatch to exclude",
        ),
        (
            {"Flickr_8k.testImages.txt": "c.jpg\nd.jpg\n"},
            r"1 image that .* lacks: 'd\.jpg'",
        ),
        (
            {"Flickr8k.token.txt": "a.jpg#0\tA dog .\n"},
            r"2 images without captions: 'b\.jpg', 'c\.jpg'",
        ),
        ({"Flickr8k.token.txt": "a.jpg A dog .\n"}, r"token\.txt, line 1"),
        ({"Flickr8k.token.txt": "a.jpg#0\tx\n\nb.jpg#x\ty\n"}, r"token\.txt, line 3"),
        (
            {"Flickr8k.token.txt": "a.jpg#0\tx\na.jpg#0\ty\n"},
            r"line 2: 'a\.jpg#0' appears twice",
        ),
        (
            {"2/Flickr8k.token.txt": "a.jpg#0\tx\n"},
            r"two captions files, '2/Flickr8k\.token\.txt', ",
        ),
        ({"2/Flickr_8k.devImages.txt": "a.jpg\n"}, r"two lists of the split 'val'"),
        ({"Flickr8k.token.txt": ""}, "has no captions"),
        ({"Flickr_8k.devImages.txt": ""}, r"split lists .* but none of 'val'"),
        ({"Flickr_8k.devImages.txt": "b.jpg\nb.jpg"}, r"names 'b\.jpg' twice"),
        ({"Flickr_8k.devImages.txt": "a.jpg"}, r"names 'a\.jpg' and so does the list of 'train'"),
        ({"Flickr_8k.devImages.txt": "\n"}, "is empty"),
        ({"other/a.jpg": PPM}, r"'a\.jpg', which may be 2 images: 'Flicker8k_Dataset/a\.jpg', "),
    ],
)
def test_archives_that_do_not_fit_together_are_reported(
    tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    images, text = flickr(tmp_path, **changes)
    with pytest.raises(InputError, match=message):
        run(tmp_path, images, text)


def test_captions_that_are_not_utf8_are_reported(tmp_path: Path) -> None:
    images, _ = flickr(tmp_path)
    text = make_zip(tmp_path / "t.zip", {"Flickr8k.token.txt": b"a.jpg#0\tcaf\xe9\n"})
    with pytest.raises(InputError, match=r"line 1 is not UTF-8 at its byte 11"):
        run(tmp_path, images, text)


def test_kaggles_single_zip(tmp_path: Path) -> None:
    members: dict[str, bytes | str] = {f"Images/{n}.jpg": PPM for n in range(8)}
    rows = "".join(f'{n}.jpg,"A dog, ""Rex"", runs ."\n{n}.jpg,A cat .\n' for n in range(8))
    archive = make_zip(
        tmp_path / "kaggle.zip", members | {"captions.txt": "image,caption\n" + rows}
    )
    out = run_download(tmp_path, archive)
    first = (out / "text.zip").read_bytes()
    assert (out / "images.zip").read_bytes() == archive.read_bytes()
    run_download(tmp_path, archive)
    assert (out / "text.zip").read_bytes() == first


def test_without_a_digest_a_damaged_image_is_found(tmp_path: Path) -> None:
    images, text = flickr(tmp_path)
    content = images.read_bytes()
    images.write_bytes(content.replace(b"red", b"rEd", 1))
    with pytest.raises(InputError, match=r"a\.jpg' cannot be unpacked"):
        run(tmp_path, images, text)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-30]), "truncated or damaged zip"),
        (lambda path: path.write_text("<html>Sign in</html>"), "a web page, not a zip"),
        (lambda path: path.unlink(), "which does not exist; check the path"),
    ],
)
def test_a_bad_archive_is_one_line_and_leaves_nothing(
    tmp_path: Path, world: Artifacts, make: object, message: str
) -> None:
    images, text = flickr(tmp_path)
    make(images)  # type: ignore[operator]
    params = write_params(
        tmp_path / "params.yaml",
        download={"images": str(images), "images_md5": None, "text": str(text), "text_md5": None},
    )
    out = tmp_path / "data"
    result = showtell(
        *("download", "--images", out / "images.zip", "--text", out / "text.zip"),
        *("--unreadable", out / "unreadable_images.csv"),
        *("--params", params),
    )
    assert message in one_line(result)
    assert not (out / "images.zip").exists()


@pytest.mark.parametrize("source", ["http://[x", "file://[x", "~nosuchuser/x.zip"])
@pytest.mark.parametrize("key", ["images", "text"])
def test_an_invalid_url_is_reported(tmp_path: Path, key: str, source: str) -> None:
    images, text = flickr(tmp_path)
    with pytest.raises(
        InputError, match=rf"download\.{key} (is|names) {re.escape(source)}.* check"
    ):
        run(tmp_path, **{"images": images, "text": text} | {key: source})


def test_another_protocol_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot fetch ftp://x/y: expected an http"):
        run(tmp_path, "ftp://x/y", None)
