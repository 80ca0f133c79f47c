"""Images in chats: what is accepted, which model sees, and decoding within limits.

An image comes as a `data:` URL. Nothing is fetched: a URL that leads elsewhere would let a caller
reach what only this machine reaches. The server looks at the form alone; bytes are decoded in the
model's worker process.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from uait_server_ext.errors import DependencyMissing, InvalidInput

from . import machine

if TYPE_CHECKING:
    from .catalogue import CatalogueEntry
    from .models import Message

BACKEND = "mlx-vlm"
NEEDED = ("mlx_vlm", "PIL")
FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP", "gif": "GIF"}
DATA_URL = re.compile(r"data:image/(png|jpeg|webp|gif);base64,", re.IGNORECASE)
MAX_IMAGES = 16
MAX_BYTES = 10 << 20
MAX_PIXELS = 25_000_000
BASE64_SHARE = 4 / 3


def images_of(messages: Iterable[Message]) -> list[str]:
    """Return the images of a conversation, in order."""
    return [image for message in messages for image in message.images]


def check_vision(entry: CatalogueEntry, images: Sequence[str]) -> None:
    """Refuse what cannot be seen here before anything is loaded; looks at form and length only.

    Raises:
        InvalidInput: the model sees nothing, or an image has a form that is not taken.
        DependencyMissing: the model sees, but what it needs is not installed.
    """
    if not images:
        return
    if "vision" not in entry.capabilities:
        raise InvalidInput(
            f"{entry.id} reads no images. Choose a model that sees: `uait models list` shows which."
        )
    if missing := [name for name in NEEDED if not machine.has_module(name)]:
        raise DependencyMissing(
            f"{entry.id} sees, but not here: no module {' and '.join(missing)}. Install the extra "
            "'uait[vision]'."
        )
    if len(images) > MAX_IMAGES:
        raise InvalidInput(f"{len(images)} images; at most {MAX_IMAGES} go into one chat.")
    for number, url in enumerate(images, start=1):
        _check_form(number, url)


def open_images(urls: Sequence[str]) -> list[Any]:
    """Decode `data:` URLs into Pillow images, upright, RGB; of an animation the first frame.

    Raises:
        InvalidInput: one is too large, in pixels or bytes, or no image of the kind that it says.
    """
    return [_open(number, url) for number, url in enumerate(urls, start=1)]


def _check_form(number: int, url: str) -> re.Match[str]:
    head = DATA_URL.match(url)
    if head is None:
        raise InvalidInput(
            f"Image {number} is no `data:` URL of a PNG, JPEG, WebP or GIF image in base64. Send "
            "the image itself; nothing is fetched."
        )
    if len(url) - head.end() > MAX_BYTES * BASE64_SHARE + 4:
        raise InvalidInput(f"Image {number} has more than {MAX_BYTES >> 20} MB. Make it smaller.")
    return head


def _open(number: int, url: str) -> Any:
    from PIL import Image, ImageOps, UnidentifiedImageError

    head = _check_form(number, url)
    kind = FORMATS[head.group(1).lower()]
    try:
        data = base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput(f"Image {number} is not in base64.") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own bound is above ours
            with Image.open(io.BytesIO(data), formats=(kind,)) as image:
                width, height = image.size  # from the header: nothing is unpacked yet
                if width * height > MAX_PIXELS:
                    raise InvalidInput(
                        f"Image {number} has {width:,} × {height:,} pixels; at most "
                        f"{MAX_PIXELS:,} are taken. Make it smaller."
                    )
                return ImageOps.exif_transpose(image).convert("RGB")
    except Image.DecompressionBombError:
        raise InvalidInput(
            f"Image {number} has far more than {MAX_PIXELS:,} pixels. Make it smaller."
        ) from None
    except InvalidInput:
        raise
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError, MemoryError):
        raise InvalidInput(
            f"Image {number} is damaged, or no {kind} image. Save it anew."
        ) from None
