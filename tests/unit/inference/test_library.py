"""Imports, removals and adapters: checked before, whole after, and never while in use."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.unit.inference.model_folders import (
    adapter_folder,
    chat_folder,
    cross_encoder_folder,
    encoder_folder,
    write_json,
)
from tests.unit.inference.test_gguf import string_field, tiny_fields, tiny_tensors
from uait_server_ext.errors import Conflict, InvalidInput, ModelNotFound, ModelUnavailable
from uait_server_ext.inference import machine
from uait_server_ext.inference.catalogue import Catalogue
from uait_server_ext.inference.gguf_convert import to_mlx
from uait_server_ext.inference.gguf_file import write_gguf
from uait_server_ext.inference.library import Library, Wanted, model_id_of
from uait_server_ext.inference.models import PullProgress
from uait_server_ext.inference.registry import REGISTRY, Registry


@pytest.fixture
def library(tmp_path: Path) -> Library:
    root = tmp_path / "models"
    root.mkdir()
    return Library.open(root)


def left_over(library: Library) -> set[str]:
    """Every file in the cache but locks."""
    return {
        str(path.relative_to(library.cache.root))
        for path in library.cache.root.rglob("*")
        if path.is_file() and path.name not in (".lock", ".in-use", f"{REGISTRY}.lock")
    }


def test_a_folder_becomes_a_model_of_the_catalogue(library: Library, tmp_path: Path) -> None:
    folder = chat_folder(tmp_path / "Tiny_Chat-1B")
    (folder / "modeling.py").write_text("raise SystemExit")
    (folder / "weights.bin").write_bytes(b"\x80\x04pickle")
    heard: list[PullProgress] = []
    entry = library.import_model(Wanted(folder), heard.append)
    assert (entry.id, entry.kind, entry.format) == ("tiny_chat-1b", "chat", "mlx")
    assert (entry.licence, entry.context_tokens) == ("apache-2.0", 128)
    assert entry.capabilities == ("chat", "tools")
    assert entry.source == f"folder:{folder.resolve()}"
    assert heard[-1].stage == "done"

    again = Library.open(library.cache.root)  # as another process, later
    known = again.catalogue.get("tiny_chat-1b", "chat")
    assert known == entry
    assert known.digest == entry.digest
    source = again.cache.source(known)
    assert sorted(path.name for path in source.iterdir()) == [
        "config.json",
        "manifest.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_a_running_catalogue_sees_what_another_imports(library: Library, tmp_path: Path) -> None:
    other = Library.open(library.cache.root)
    assert "tiny" not in [entry.id for entry in other.catalogue.entries]
    library.import_model(Wanted(chat_folder(tmp_path / "tiny")))
    assert other.catalogue.get("tiny").kind == "chat"
    library.remove("tiny")
    with pytest.raises(ModelNotFound):
        other.catalogue.get("tiny")
    assert left_over(library) == {REGISTRY}


def test_what_people_say_of_a_model_is_kept(library: Library, tmp_path: Path) -> None:
    wanted = Wanted(chat_folder(tmp_path / "x"), "mine", "MIT", "My own.", 64)
    entry = library.import_model(wanted)
    assert (entry.id, entry.licence, entry.description) == ("mine", "MIT", "My own.")
    assert entry.context_tokens == 64


def test_encoders_know_their_pooling(library: Library, tmp_path: Path) -> None:
    mean = library.import_model(Wanted(encoder_folder(tmp_path / "mean")))
    assert (mean.kind, mean.format, mean.dimension) == ("embedding", "bert", 32)
    assert (mean.pooling, mean.context_tokens) == ("mean", 32)
    cls = library.import_model(Wanted(encoder_folder(tmp_path / "first", pooling="cls_token")))
    assert cls.pooling == "cls"
    cross = library.import_model(Wanted(cross_encoder_folder(tmp_path / "cross")))
    assert (cross.kind, cross.dimension, cross.capabilities) == ("rerank", None, ("rerank",))


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def own_code(folder: Path) -> None:
    chat_folder(folder, config={"auto_map": {"AutoModel": "modeling.Tiny"}})


def own_file(folder: Path) -> None:
    chat_folder(folder, config={"model_file": "model.py"})


def tokenizer_code(folder: Path) -> None:
    write_json(folder / "tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["x.Y", None]}})


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def no_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x80\x04not a header at all")


def missing_shard(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    write_json(folder / "model.safetensors.index.json", index)


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def unknown_type(folder: Path) -> None:
    chat_folder(folder, config={"model_type": "../../evil"})


def no_object(folder: Path) -> None:
    (folder / "config.json").write_text("[1]")


def many_labels(folder: Path) -> None:
    shutil.rmtree(folder)
    cross_encoder_folder(folder, labels=3)


def odd_pooling(folder: Path) -> None:
    shutil.rmtree(folder)
    encoder_folder(folder, pooling="max_tokens")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (no_config, "no config.json"),
        (own_code, "auto_map"),
        (own_file, "model_file"),
        (tokenizer_code, "auto_map"),
        (pickled, "pickle"),
        (no_weights, "no weights"),
        (cut_short, "not whole"),
        (no_safetensors, "no safetensors file"),
        (missing_shard, "model-2.safetensors"),
        (no_tokenizer, "no tokenizer"),
        (unknown_type, "evil"),
        (no_object, "no JSON object"),
        (many_labels, "one label"),
        (odd_pooling, "max_tokens"),
    ],
)
def test_a_folder_that_will_not_do_is_refused_and_nothing_kept(
    library: Library, tmp_path: Path, spoil: Any, said: str
) -> None:
    if spoil is unknown_type and not machine.has_module("mlx_lm"):
        pytest.skip("without MLX nobody here knows its types")
    folder = chat_folder(tmp_path / "tiny")
    spoil(folder)
    with pytest.raises(InvalidInput, match=said):
        library.import_model(Wanted(folder))
    assert left_over(library) == set()


def test_a_gguf_is_converted_when_it_is_used(library: Library, tmp_path: Path) -> None:
    path = tmp_path / "Tiny.Q4_1.gguf"
    write_gguf(path, tiny_fields(), tiny_tensors())
    entry = library.import_model(Wanted(path))
    assert (entry.id, entry.format, entry.context_tokens) == ("tiny.q4_1", "gguf", 128)
    assert entry.source == f"file:{path}"
    assert entry.capabilities == ("chat",)
    made = library.cache.derived(entry, "mlx-test", to_mlx)
    assert json.loads((made / "config.json").read_text())["model_type"] == "llama"


def test_a_gguf_without_a_template_only_goes_on_with_texts(
    library: Library, tmp_path: Path
) -> None:
    path = tmp_path / "base.gguf"
    fields = tiny_fields(**{"tokenizer.chat_template": string_field("x", "")})
    write_gguf(path, fields, tiny_tensors())
    assert library.import_model(Wanted(path)).capabilities == ("completion",)


@pytest.mark.parametrize(
    ("field", "value"), [("general.architecture", "qwen3"), ("tokenizer.ggml.pre", "tekken")]
)
def test_a_gguf_that_cannot_be_converted_is_refused_at_once(
    library: Library, tmp_path: Path, field: str, value: str
) -> None:
    path = tmp_path / "odd.gguf"
    write_gguf(path, tiny_fields(**{field: string_field(field, value)}), tiny_tensors())
    with pytest.raises(InvalidInput, match=value):
        library.import_model(Wanted(path))
    assert left_over(library) == set()


@pytest.mark.parametrize("name", ["absent", "notes.txt"])
def test_what_is_no_model_is_refused(library: Library, tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").write_text("words")
    with pytest.raises(InvalidInput, match=r"neither a model folder|not a GGUF"):
        library.import_model(Wanted(tmp_path / name))


def test_a_known_id_is_refused(library: Library, tmp_path: Path) -> None:
    folder = chat_folder(tmp_path / "tiny")
    with pytest.raises(Conflict, match="echo"):
        library.import_model(Wanted(folder, id="echo"))
    library.import_model(Wanted(folder))
    with pytest.raises(Conflict, match="tiny"):
        library.import_model(Wanted(folder))


def test_an_id_that_cannot_be_one_is_refused(library: Library, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="id"):
        library.import_model(Wanted(chat_folder(tmp_path / "tiny"), id="../up"))
    assert left_over(library) == set()


def test_too_little_disk_is_said_before_the_copy(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage(NamedTuple):
        free: int = 10

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage())
    with pytest.raises(ModelUnavailable, match="Make room"):
        library.import_model(Wanted(chat_folder(tmp_path / "tiny")))


def test_an_import_that_is_given_up_keeps_nothing(library: Library, tmp_path: Path) -> None:
    def give_up(heard: PullProgress) -> None:
        raise ModelUnavailable("enough")

    folder = chat_folder(tmp_path / "tiny")
    with pytest.raises(ModelUnavailable, match="enough"):
        library.import_model(Wanted(folder), give_up)
    assert left_over(library) == set()
    # killed between the files and the list: nobody refers to them, the next import takes over
    library.import_model(Wanted(folder))
    library.registry.remove_model("tiny")
    assert library.import_model(Wanted(folder)).id == "tiny"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/m/Qwen3-4B-Instruct.gguf", "qwen3-4b-instruct"),
        ("/hub/models--mlx-community--Tiny-4bit/snapshots/0123abc", "tiny-4bit"),
        ("/m/-- My Model (v2)/", "my-model-v2"),
    ],
)
def test_an_id_is_made_of_the_name(path: str, expected: str) -> None:
    assert model_id_of(Path(path)) == expected


def test_files_of_an_import_that_are_gone_say_what_to_do(library: Library, tmp_path: Path) -> None:
    entry = library.import_model(Wanted(chat_folder(tmp_path / "tiny")))
    (library.cache.source(entry) / "config.json").unlink()
    assert not library.cache.has(entry)
    with pytest.raises(ModelUnavailable, match="uait models remove tiny"):
        library.cache.source(entry)
    with pytest.raises(ModelUnavailable, match="are gone"):
        library.cache.pull(entry)


def test_an_adapter_belongs_to_its_model(library: Library, tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "made")
    adapter = library.register_adapter("echo", "polite", folder, {"steps": 50, "loss": 0.5})
    assert adapter.id == "echo+polite"
    kept = Registry(library.cache.root).adapter("echo", "polite")
    assert kept == adapter
    assert kept.facts == {"steps": 50, "loss": 0.5}
    there = library.adapter_folder("echo", "polite")
    assert there == library.cache.root / "echo" / "adapter-polite"
    assert (there / "adapters.safetensors").read_bytes() == (
        folder / "adapters.safetensors"
    ).read_bytes()
    with pytest.raises(Conflict, match="already"):
        library.register_adapter("echo", "polite", folder, {})
    with pytest.raises(ModelNotFound, match="It has: polite"):
        library.adapter_folder("echo", "rude")
    library.remove("echo")  # the model's own files: its adapters stay
    assert library.adapter_folder("echo", "polite") == there
    library.remove("echo+polite")
    assert left_over(library) == {REGISTRY}
    with pytest.raises(ModelNotFound):
        library.remove("echo+polite")


def test_a_damaged_adapter_is_not_used(library: Library, tmp_path: Path) -> None:
    library.register_adapter("echo", "polite", adapter_folder(tmp_path / "made"), {})
    path = library.adapter_folder("echo", "polite") / "adapters.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelUnavailable, match="damaged"):
        library.adapter_folder("echo", "polite")


def test_what_is_no_adapter_is_refused(library: Library, tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "made")
    for name in ("", "../x", "Upper", "x" * 61):
        with pytest.raises(InvalidInput, match="cannot name an adapter"):
            library.register_adapter("echo", name, folder, {})
    with pytest.raises(ModelNotFound):
        library.register_adapter("nothing", "x", folder, {})
    (folder / "adapter_config.json").unlink()
    with pytest.raises(InvalidInput, match=r"adapter_config\.json"):
        library.register_adapter("echo", "x", folder, {})
    assert left_over(library) == set()


def test_an_imported_model_with_adapters_is_not_removed(library: Library, tmp_path: Path) -> None:
    library.import_model(Wanted(chat_folder(tmp_path / "tiny")))
    library.register_adapter("tiny", "polite", adapter_folder(tmp_path / "made"), {})
    with pytest.raises(Conflict, match=r"tiny\+polite"):
        library.remove("tiny")
    library.remove("tiny+polite")
    assert library.remove("tiny") > 0


USE = """
import sys
from pathlib import Path
from uait_server_ext.inference.library import Library
library = Library.open(Path(sys.argv[1]))
library.cache.use(library.catalogue.get("tiny"))
print("in use", flush=True)
sys.stdin.read()
"""


def test_a_model_that_another_process_uses_is_not_removed(library: Library, tmp_path: Path) -> None:
    library.import_model(Wanted(chat_folder(tmp_path / "tiny")))
    library.register_adapter("tiny", "polite", adapter_folder(tmp_path / "made"), {})
    child = subprocess.Popen(
        [sys.executable, "-c", USE, str(library.cache.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert child.stdin
    assert child.stdout
    with child.stdin, child.stdout:
        assert child.stdout.readline() == b"in use\n"
        for model in ("tiny+polite", "tiny"):
            with pytest.raises(Conflict):
                library.remove(model)
        assert library.cache.has(library.catalogue.get("tiny"))
        child.kill()
        child.wait()
    library.remove("tiny+polite")
    library.remove("tiny")


def test_many_change_the_registry_at_once(library: Library, tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "made")

    def register(number: int) -> None:
        own = Library.open(library.cache.root)
        own.register_adapter("echo", f"a{number}", folder, {})

    threads = [threading.Thread(target=register, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {adapter.name for adapter in library.registry.adapters("echo")} == {
        f"a{number}" for number in range(8)
    }


def test_a_registry_that_cannot_be_read_is_named(library: Library) -> None:
    (library.cache.root / REGISTRY).write_text("{")
    with pytest.raises(InvalidInput, match=r"\.registry\.json"):
        _ = Catalogue.load(registry=Registry(library.cache.root)).entries
