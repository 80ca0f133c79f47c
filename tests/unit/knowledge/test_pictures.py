"""Text in pictures: read where tesseract is installed, else a clear note for each file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from uait_server_ext.errors import UnsupportedDocument
from uait_server_ext.knowledge.reading import picture
from uait_server_ext.knowledge.reading.picture import can_read_pictures
from uait_server_ext.knowledge.reading.read import parse, read
from uait_server_ext.knowledge.walk import find_files

SAID = "The lighthouse opens at nine."


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a program called tesseract first on the path; a test says what it does."""
    folder = tmp_path / "bin"
    folder.mkdir()
    file = folder / "tesseract"
    file.write_text("#!/bin/sh\nexit 1\n")
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    picture._languages.cache_clear()
    return file


def drawn(path: Path) -> Path:
    """Draw a sentence into a picture."""
    image = pytest.importorskip("PIL.Image")
    draw = pytest.importorskip("PIL.ImageDraw")
    font = pytest.importorskip("PIL.ImageFont")
    paper = image.new("RGB", (900, 120), "white")
    draw.Draw(paper).text((30, 30), SAID, fill="black", font=font.load_default(size=48))
    paper.save(path)
    return path


@pytest.mark.skipif(not can_read_pictures(), reason="needs tesseract")
def test_text_in_a_picture_is_read_and_has_a_place(tmp_path: Path) -> None:
    picture._languages.cache_clear()
    for name in ("sign.png", "sign.jpg"):
        reading = read(drawn(tmp_path / name), None, 1 << 20)
        assert reading.passages is not None
        assert reading.passages[0].text == SAID
        assert reading.passages[0].label == "line 1"
        assert reading.media_type == ("image/png" if name.endswith("png") else "image/jpeg")


@pytest.mark.skipif(not can_read_pictures(), reason="needs tesseract")
@pytest.mark.parametrize("data", [b"", b"nothing", b"\x89PNG\r\n\x1a\n" + bytes(99)])
def test_what_is_no_picture_is_a_clear_error(data: bytes) -> None:
    with pytest.raises(UnsupportedDocument, match=r"cannot read the picture|shows no text"):
        parse(Path("a.png"), data)


def test_without_tesseract_each_picture_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not can_read_pictures()
    with pytest.raises(UnsupportedDocument, match="apt install tesseract-ocr"):
        parse(Path("a.png"), b"x")


def test_folders_are_searched_for_pictures_only_where_they_can_be_read(
    tmp_path: Path, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    for name in ("a.png", "b.jpeg", "c.svg", "d.md"):
        (folder / name).write_text("x")

    def found() -> list[str]:
        return [Path(file.path).name for file in find_files(folder, "x", lambda _: True).files]

    assert found() == ["a.png", "b.jpeg", "d.md"]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert found() == ["d.md"]


def test_it_reads_in_the_installed_languages(program: Path) -> None:
    program.write_text(
        '#!/bin/sh\nif [ "$1" = --list-langs ]; then printf "List\\ndeu\\neng\\nosd\\n"; exit; fi\n'
        'cat > /dev/null; echo "$3 $4"\n'
    )
    assert parse(Path("a.png"), b"x").text == "-l deu+eng"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("cat > /dev/null; exit 0", "shows no text"),
        ("cat > /dev/null; echo Error in pixReadMem >&2; exit 1", r"\(Error in pixReadMem\)"),
        ("exec sleep 30", "longer than"),
    ],
)
def test_what_goes_wrong_is_said(
    program: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    program.write_text(f'#!/bin/sh\n[ "$1" = --list-langs ] && exit 0\n{script}\n')
    picture._languages(str(program))  # within the usual time
    monkeypatch.setattr(picture, "SECONDS", 2)
    with pytest.raises(UnsupportedDocument, match=said):
        parse(Path("a.png"), b"x")
