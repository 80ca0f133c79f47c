"""Which files are read, and how: by extension, then by name."""

from __future__ import annotations

from pathlib import PurePath
from typing import Literal

Parser = Literal["markdown", "text", "rst", "html", "pdf", "notebook", "python", "code", "picture"]

PARSERS: dict[str, tuple[Parser, str]] = {
    **dict.fromkeys((".md", ".markdown", ".mdx", ".qmd", ".rmd"), ("markdown", "text/markdown")),
    **dict.fromkeys((".rst", ".rest"), ("rst", "text/x-rst")),
    **dict.fromkeys((".html", ".htm", ".xhtml"), ("html", "text/html")),
    ".pdf": ("pdf", "application/pdf"),
    **dict.fromkeys((".tif", ".tiff"), ("picture", "image/tiff")),
    **dict.fromkeys((".jpg", ".jpeg"), ("picture", "image/jpeg")),
    **{f".{kind}": ("picture", f"image/{kind}") for kind in ("png", "webp", "bmp")},
    ".ipynb": ("notebook", "application/x-ipynb+json"),
    **dict.fromkeys((".py", ".pyi"), ("python", "text/x-python")),
    **{
        f".{extension}": ("code", f"text/x-{language}")
        for language, extensions in {
            "typescript": "ts tsx",
            "javascript": "js jsx mjs cjs",
            "go": "go",
            "rust": "rs",
            "java": "java kt scala groovy",
            "c": "c h",
            "c++": "cpp cc cxx hpp hh cu",
            "csharp": "cs",
            "shell": "sh bash zsh fish ps1",
            "sql": "sql",
            "r": "r",
            "julia": "jl",
            "ruby": "rb",
            "php": "php",
            "swift": "swift",
            "lua": "lua",
            "perl": "pl pm",
            "css": "css scss less",
            "toml": "toml",
            "yaml": "yaml yml",
            "ini": "ini cfg conf",
        }.items()
        for extension in extensions.split()
    },
}

# Clearly no documents: a folder that holds them is not reported for it.
NO_DOCUMENT_KINDS = """
    gif ico svg heic psd ai eps
    mp3 wav ogg flac m4a mp4 mov avi mkv webm ttf otf woff woff2 eot
    zip tar gz tgz bz2 xz zst 7z rar whl egg jar deb rpm dmg iso
    exe dll so dylib a o obj lib pyc pyo class wasm bin
    json jsonl ndjson csv tsv parquet feather arrow avro orc h5 hdf5 nc mat npy npz pkl pickle
    joblib db sqlite sqlite3 duckdb safetensors gguf onnx pt pth ckpt mlmodel usearch
    lock map log tmp bak swp ds_store
"""
NO_DOCUMENTS = frozenset(f".{extension}" for extension in NO_DOCUMENT_KINDS.split())

# Documents, but of kinds that nothing here reads.
OFFICE = frozenset(
    (".doc", ".docx", ".odt", ".rtf", ".ppt", ".pptx", ".odp", ".xls", ".xlsx", ".ods", ".epub")
)


def is_no_document(path: PurePath, *, pictures: bool = True) -> bool:
    """Tell whether the file's extension says that it holds no document; pictures may hold text."""
    suffix = path.suffix.lower()
    return suffix in NO_DOCUMENTS or (not pictures and suffix in PICTURES)


PICTURES = frozenset(suffix for suffix, (parser, _) in PARSERS.items() if parser == "picture")


def parser_for(path: PurePath) -> tuple[Parser, str]:
    """Return the parser and the media type; what has no extension of its own is tried as text."""
    return PARSERS.get(path.suffix.lower(), ("text", "text/plain"))
