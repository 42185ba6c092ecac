"""Data that does not fit or cannot be read: refused in one line, or set aside and listed."""

from pathlib import Path

import pytest

from pipeline.captions.table import read_info, read_table
from pipeline.runtime.errors import InputError
from tests.conftest import make_zip
from tests.helpers.datasets import PPM, run_download, run_prepare
from tests.helpers.formats import json_lines, small_data, write_tar


def test_what_does_not_fit_is_listed_and_counted(tmp_path: Path) -> None:
    images: dict[str, bytes | str] = dict.fromkeys([f"{n}.jpg" for n in range(40)], PPM)
    archive = make_zip(tmp_path / "i.zip", images | {"bad.jpg": b"<html>", "alone.jpg": PPM})
    table = tmp_path / "captions.csv"
    table.write_text(
        "image,caption\n"
        + "".join(f"{name},a dog\n" for name in images)
        + "lost.jpg,a cat\nlost.jpg,a cat\nbad.jpg,a cow\n0.jpg,...\n"
    )
    with pytest.raises(InputError, match=r"bad\.jpg is not an image .*on_bad_image to exclude"):
        run_download(tmp_path, archive, table)
    with pytest.raises(
        InputError, match=r"that is 2\.4% of the images, more than download\.max_excluded"
    ):
        run_download(tmp_path, archive, table, on_bad_image="exclude", max_excluded=0.02)
    out = run_download(tmp_path, archive, table, on_bad_image="exclude")
    assert "bad.jpg" in (out / "unreadable_images.csv").read_text()
    with pytest.raises(InputError) as error:
        run_prepare(out, max_excluded=0.1)
    assert "1 image that" in str(error.value)
    assert "lacks: 'lost.jpg'; add them" in str(error.value)
    assert "1 image that cannot be read: 'bad.jpg'" in str(error.value)
    assert "1 image without captions: 'alone.jpg'; add captions" in str(error.value)
    assert "without words, of '0.jpg': write or remove them; or set prepare.on_mis" in str(
        error.value
    )
    assert not (out / "captions.csv").exists()
    for mode, remedy in [("fail", "raise it and set prepare.on_mis"), ("exclude", "raise it;")]:
        with pytest.raises(InputError) as error:
            run_prepare(out, on_mismatch=mode)
        reason = (
            "that is 9.1% of the captions, more than prepare.max_excluded (0.05); mend the data,"
        )
        assert f"{reason} or {remedy}" in str(error.value)
        assert "run: dvc repro -f download" in str(error.value)
    run_prepare(out, on_mismatch="exclude", max_excluded=0.1)
    assert (out / "excluded.csv").read_text().splitlines() == [
        "reason,image,caption",
        "empty caption,0.jpg,...",
        "image without captions,alone.jpg,",
        "missing image,lost.jpg,a cat",
        "missing image,lost.jpg,a cat",
        "unreadable image,bad.jpg,a cow",
    ]
    info = read_info(out / "captions.csv")
    assert info.excluded == {
        "empty caption": 1,
        "image without captions": 1,
        "missing image": 1,
        "unreadable image": 1,
    }
    assert sum(info.images.values()) == 40


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("a.json", "{", "a.json is not valid JSON"),
        ("a.json", "[]", "'a.json' has no captions"),
        ("a.json", '{"x": 1}', "has no captions in a known format; expected Karpathy's"),
        ("a.json", '[{"foo": 1}]', "entry 1: expected an object with 'image' and 'caption', found"),
        ("a.json", '[{"image": "a.jpg", "caption": 5}]', "entry 1: expected captions, found 5"),
        ("a.jsonl", '{"image": "a.jpg", "caption": "x"}\n{', "line 2 is not valid JSON"),
        ("a.json", '{"images": [{"filename": 3}]}', "images[0]: expected a text 'filename'"),
        (
            "a.json",
            '{"images": [], "annotations": [{"image_id": 1, "caption": "x"}]}',
            "lacks: 'image_id 1'",
        ),
        (
            "a.json",
            '{"images": [{"id": 1, "file_name": "a.jpg"}, {"id": "1", "file_name": "b.jpg"}], '
            '"annotations": [{"image_id": 1, "caption": "x"}]}',
            "images[1]: the id 1 is 'a.jpg' too; give each image its own",
        ),
        ("a.json", '{"images": [{"filename": "a.jpg", "split": "x", "sentences": [{"raw": "b"}]}]}',
         "the split 'x' is unknown; allowed are train, training, restval, val"),
        ("a.csv", "image,caption,split\na.jpg,x,train\na.jpg,y,val\n", "is in two splits, 'train'"),
        ("a.tsv", "a.jpg\tx\n", "has no header, it begins with"),
        ("a.csv", "foto,wort\na.jpg,x\n", "name your columns in prepare.image_column"),
    ],
)  # fmt: skip
def test_an_invalid_file_is_one_line(tmp_path: Path, file: str, content: str, message: str) -> None:
    text = tmp_path / file
    text.write_text(content)
    out = run_download(tmp_path, make_zip(tmp_path / "i.zip", {"a.jpg": PPM}), text)
    with pytest.raises(InputError) as error:
        run_prepare(out)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_several_captions_files_need_a_name(tmp_path: Path) -> None:
    data = small_data()
    (tmp_path / "source").mkdir()
    sources = json_lines(data, tmp_path / "source")
    other = tmp_path / "other.csv"
    other.write_text("image,caption\nIMG 00.jpg,a dog\n")
    out = run_download(tmp_path, sources.images, [sources.text, other])
    with pytest.raises(InputError, match=r"two captions files, 'all\.json', 'other\.csv'; "):
        run_prepare(out)
    with pytest.raises(InputError, match=r"has no 'x\.csv', which prepare\.file names; it has"):
        run_prepare(out, file="x.csv")
    run_prepare(out, file="all.json")
    run_prepare(out, format="json")
    assert len(read_table(out / "captions.csv").rows) == len(data.rows())


def test_a_truncated_tar_is_refused(tmp_path: Path) -> None:
    data = small_data()
    tar = write_tar(tmp_path / "x.tar", data.images.items())
    content = tar.read_bytes()
    for size in (len(content) // 2, 1024 * (len(content) // 3 // 1024)):
        tar.write_bytes(content[:size])
        with pytest.raises(InputError, match=r"x\.tar is a truncated or damaged tar"):
            run_download(tmp_path, tar, tmp_path / "none.csv")


def forty_images(folder: Path, name: str = "{}.jpg") -> tuple[Path, Path]:
    """A folder of 40 images in two folders, and a table that names them in this way."""
    for n in range(40):
        path = folder / "photos" / "ab"[n % 2] / f"{n}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(PPM)
    table = folder / "captions.csv"
    rows = "".join(f"{name.format('ab'[n % 2] + f'/{n}')},a dog\n" for n in range(40))
    table.write_text(f"image,caption\n{rows}")
    return folder / "photos", table


def test_an_image_of_an_unsupported_format_is_not_dropped_silently(tmp_path: Path) -> None:
    photos, table = forty_images(tmp_path)
    (photos / "IMG_9.HEIC").write_bytes(b"ftypheic")
    with pytest.raises(
        InputError, match=r"IMG_9\.HEIC is of an unsupported format \(\.HEIC\); conv"
    ):
        run_download(tmp_path, photos, table)
    out = run_download(tmp_path, photos, table, on_bad_image="exclude")
    run_prepare(out)
    assert "unreadable image,IMG_9.HEIC," in (out / "excluded.csv").read_text()


def test_images_that_download_set_aside_are_not_refused_by_prepare(tmp_path: Path) -> None:
    photos, table = forty_images(tmp_path)
    (photos / "a/0.jpg").write_text("<html>")
    out = run_download(tmp_path, photos, table, on_bad_image="exclude")
    run_prepare(out)
    assert read_info(out / "captions.csv").excluded == {"unreadable image": 1}


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("{}", "'a/0' is named 'a/0.jpg' there; 'b/1' is named"),
        ("{}.JPG", "'a/0.JPG' is named 'a/0.jpg' there"),
        ("{}.png", "'a/0.png' is named 'a/0.jpg' there"),
    ],
)
def test_a_similar_path_is_suggested(tmp_path: Path, name: str, hint: str) -> None:
    out = run_download(tmp_path, *forty_images(tmp_path, name))
    with pytest.raises(InputError) as error:
        run_prepare(out)
    assert hint in str(error.value)
    assert str(error.value).count(" is named ") == 3


def test_a_spreadsheet_and_another_encoding_say_what_to_save_instead(tmp_path: Path) -> None:
    photos, table = forty_images(tmp_path)
    sheet = make_zip(tmp_path / "captions.xlsx", {"xl/workbook.xml": ""})
    with pytest.raises(
        InputError, match=r"captions\.xlsx, which is not read; save it as CSV in UTF-8"
    ):
        run_download(tmp_path, photos, sheet)
    text = table.read_text()
    for encoding, said in (("utf-16", "is UTF-16; save it as"), ("cp1252", "line 2 is not UTF-8")):
        table.write_text(text.replace("a dog", "ein müder Hund"), encoding=encoding)
        out = run_download(tmp_path, photos, table)
        with pytest.raises(InputError, match=rf"{said}.* \(Excel: CSV UTF-8\)"):
            run_prepare(out)


def test_a_wrong_source_is_named_as_params_name_it(tmp_path: Path) -> None:
    photos, table = forty_images(tmp_path)
    (tmp_path / "empty").mkdir()
    for images, text, said in (
        (tmp_path / "photo", table, r"photo, which does not exist; check the path"),
        (tmp_path / "empty", table, r"empty': no images; expected \.bmp"),
        (table, table, r"captions\.csv': no images; expected"),
        (photos, photos / "a/0.jpg", r"download\.text names .*0\.jpg, one image; name a"),
        (photos, photos, r"photos': no files that may hold captions; name a file"),
        (photos, None, r"photos': no files that may hold captions; name a file"),
    ):
        with pytest.raises(InputError, match=said):
            run_download(tmp_path, images, text)
        assert not (tmp_path / "data/text.zip").exists()


def test_a_source_named_twice_is_read_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos, table = forty_images(tmp_path)
    once = run_download(tmp_path / "once", photos, table)
    twice = run_download(tmp_path / "twice", [photos, f"{photos}/"], [table, table])
    assert f"download.images names {photos} twice; it is read once" in caplog.text
    for name in ("images.zip", "text.zip"):
        assert (twice / name).stat().st_size == (once / name).stat().st_size


def test_only_photos_of_an_unsupported_format_are_said(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/1.heic").write_bytes(b"ftypheic")
    expected = r"no images; expected \.bmp .*, found 1 file of other formats \('1\.heic'\); convert"
    with pytest.raises(InputError, match=expected):
        run_download(tmp_path, tmp_path / "photos", tmp_path / "photos")


def test_a_split_column_that_is_not_there_is_refused(tmp_path: Path) -> None:
    photos, table = forty_images(tmp_path)
    out = run_download(tmp_path, photos, table)
    expected = r"captions\.csv has no column or key 'set', which prepare\.split_column names; its"
    with pytest.raises(InputError, match=expected):
        run_prepare(out, split_column="set")


@pytest.mark.parametrize("cell", ["['a dog', \"a dog's tail\"]", '[""a dog"", ""a dog\'s tail""]'])
def test_a_list_in_a_cell_is_several_captions(tmp_path: Path, cell: str) -> None:
    photos, table = forty_images(tmp_path)
    quoted = cell if '""' in cell else cell.replace('"', '""')
    table.write_text(table.read_text().replace("a/0.jpg,a dog", f'a/0.jpg,"{quoted}"'))
    rows = read_table(run_prepare(run_download(tmp_path, photos, table))).rows
    assert list(rows[rows["image_id"] == "a/0.jpg"]["caption"]) == ["a dog", "a dog's tail"]


def test_tables_that_repeat_each_other_are_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos, table = forty_images(tmp_path)
    old = tmp_path / "captions_old.csv"
    old.write_text(table.read_text())
    out = run_download(tmp_path, photos, [table, old])
    expected = r"captions_old\.csv and captions\.csv both have the caption 'a dog' of .* name one"
    with pytest.raises(InputError, match=expected):
        run_prepare(out)
    table.write_text(table.read_text() + "a/0.jpg,a dog\n")
    run_prepare(run_download(tmp_path / "one", photos, table))
    assert "1 caption repeated word for word for one image" in caplog.text


@pytest.mark.parametrize("suffix", [".txt", ".json"])
def test_a_text_file_whose_photo_is_gone_is_a_missing_image(tmp_path: Path, suffix: str) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for n in range(40):
        (photos / f"{n}.jpg").write_text(PPM.replace("red", f"r{n:02}"))
        content = '{"caption": "a dog", "status": "success"}' if suffix == ".json" else "a dog"
        (photos / f"{n}{suffix}").write_text(content)
    (photos / "README.txt").write_text("about these photos")
    (photos / "3.jpg").unlink()
    out = run_download(tmp_path, photos, photos)
    with pytest.raises(InputError, match=r"1 image that .* lacks: '3\.jpg'; add them"):
        run_prepare(out)
    assert len(read_table(run_prepare(out, on_mismatch="exclude")).rows) == 39


def test_a_table_of_something_else_beside_the_captions_is_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos, table = forty_images(tmp_path)
    other = tmp_path / "cameras.csv"
    other.write_text("id,camera\n0,Leica\n")
    assert len(read_table(run_prepare(run_download(tmp_path, photos, [table, other]))).rows) == 40
    assert "cameras.csv is not read: its header has no images with captions" in caplog.text


def test_excels_separator_line_is_no_header(tmp_path: Path) -> None:
    photos, table = forty_images(tmp_path)
    table.write_text("sep=;\n" + table.read_text().replace(",", ";"))
    assert len(read_table(run_prepare(run_download(tmp_path, photos, table))).rows) == 40
