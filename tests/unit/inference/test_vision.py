"""Images in chats: limits, what is refused, and decoding; hostile ones end as clear errors."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.inference.packages import hide
from uait_server_ext.errors import DependencyMissing, InvalidInput
from uait_server_ext.inference import machine, vision
from uait_server_ext.inference.catalogue import Catalogue, CatalogueEntry
from uait_server_ext.inference.models import Message
from uait_server_ext.inference.vision import check_vision, images_of, open_images

pillow = pytest.importorskip("PIL.Image")


def url_of(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def picture(size: tuple[int, int] = (3, 2), kind: str = "png", **options: Any) -> str:
    file = io.BytesIO()
    pillow.new("RGB", size, (200, 30, 40)).save(file, kind.upper(), **options)
    return url_of(file.getvalue(), kind)


def seeing() -> CatalogueEntry:
    blind = Catalogue.load().get("gemma-3-4b-it")
    return blind.model_copy(update={"capabilities": ("chat", "vision")})


def see(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    known = set(vision.NEEDED) - set(missing)
    monkeypatch.setattr(machine, "has_module", lambda name: name in known)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif"])
def test_images_are_decoded_to_rgb(kind: str) -> None:
    (image,) = open_images([picture(kind=kind)])
    assert image.mode == "RGB"
    assert image.size == (3, 2)


def test_a_photo_is_turned_upright() -> None:
    exif = pillow.Exif()
    exif[0x0112] = 6  # turned by a quarter
    (image,) = open_images([picture((3, 2), "jpeg", exif=exif)])
    assert image.size == (2, 3)


def test_a_model_that_does_not_see_says_so() -> None:
    with pytest.raises(InvalidInput, match="reads no images"):
        check_vision(Catalogue.load().get("smollm2-135m-instruct"), [picture()])
    check_vision(Catalogue.load().get("smollm2-135m-instruct"), [])


def test_a_machine_without_the_extra_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, "mlx_vlm")
    with pytest.raises(DependencyMissing, match=r"uait\[vision\]"):
        check_vision(seeing(), [picture()])


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/a.png",
        "http://169.254.169.254/latest",
        "file:///etc/passwd",
        "/etc/passwd",
        "data:image/svg+xml;base64,AAAA",
        "data:text/html;base64,AAAA",
        "data:image/png,AAAA",
        "",
    ],
)
def test_nothing_but_data_urls_of_images_is_taken(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    see(monkeypatch)
    with pytest.raises(InvalidInput, match="data:"):
        check_vision(seeing(), [picture(), url])
    with pytest.raises(InvalidInput, match="Image 1"):
        open_images([url])


def test_bytes_and_number_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch)
    monkeypatch.setattr(vision, "MAX_BYTES", 1 << 20)
    with pytest.raises(InvalidInput, match="1 MB"):
        check_vision(seeing(), [url_of(bytes(2 << 20))])
    with pytest.raises(InvalidInput, match="at most 16"):
        check_vision(seeing(), [picture()] * 17)


def bomb(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes that says it is large."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(60_000, 60_000), (2**31 - 1, 2**31 - 1), (5001, 5000)])
def test_an_image_of_too_many_pixels_is_refused_before_it_is_unpacked(
    size: tuple[int, int],
) -> None:
    with pytest.raises(InvalidInput, match=r"pixels|damaged"):
        open_images([url_of(bomb(*size))])


@pytest.mark.parametrize(
    "data",
    [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", bomb(4000, 4000), b"%PDF-1.4", b"<svg/>"],
)
def test_what_is_no_image_or_half_of_one_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput, match="damaged, or no PNG"):
        open_images([url_of(data)])


def test_a_file_of_another_kind_than_it_says_is_refused() -> None:
    jpeg = picture(kind="jpeg").partition(",")[2]
    with pytest.raises(InvalidInput, match="no PNG"):
        open_images([f"data:image/png;base64,{jpeg}"])


def test_what_is_not_base64_is_refused() -> None:
    with pytest.raises(InvalidInput, match="base64"):
        open_images(["data:image/png;base64,%%%"])


@given(data=st.binary(max_size=300), kind=st.sampled_from(sorted(vision.FORMATS)))
def test_any_bytes_are_an_image_or_a_clear_error(data: bytes, kind: str) -> None:
    starts = {
        "png": b"\x89PNG\r\n\x1a\n",
        "jpeg": b"\xff\xd8\xff",
        "gif": b"GIF89a",
        "webp": b"RIFF",
    }
    for content in (data, starts[kind] + data):
        with suppress(InvalidInput):
            open_images([url_of(content, kind)])


def test_the_images_of_a_conversation_are_in_order() -> None:
    messages = [
        Message(role="user", content="a", images=["1", "2"]),
        Message(role="assistant", content="b"),
        Message(role="user", content="c", images=["3"]),
    ]
    assert images_of(messages) == ["1", "2", "3"]


def test_the_backend_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    from uait_server_ext.inference.backends.mlx_vision import VisionChat
    from uait_server_ext.inference.cache import ModelCache

    hide(monkeypatch, "mlx_vlm")
    with pytest.raises(DependencyMissing, match=r"uait\[vision\]"):
        VisionChat(seeing(), ModelCache(tmp_path), 1)
