"""What the catalogue promises: defaults, clear refusals, checked entries."""

from __future__ import annotations

from pathlib import Path

import pytest

from uait_server_ext.errors import InvalidInput, ModelNotFound
from uait_server_ext.inference.catalogue import Catalogue


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return Catalogue.load()


def test_the_defaults_are_the_embedded_models(catalogue: Catalogue) -> None:
    assert [entry.id for entry in catalogue.embedded()] == [
        "smollm2-135m-instruct",
        "all-minilm-l6-v2",
    ]
    assert catalogue.get("auto", "chat").id == "smollm2-135m-instruct"
    assert catalogue.get("auto", "embedding").dimension == 384


def test_echo_is_there_but_is_never_the_default(catalogue: Catalogue) -> None:
    assert catalogue.get("echo").default is False


def test_a_mac_finds_hub_models_with_size_and_memory(catalogue: Catalogue) -> None:
    hub = [entry for entry in catalogue.entries if entry.hub]
    assert len(hub) >= 6
    assert all(entry.size_bytes > 10**9 for entry in hub)
    assert all(entry.memory_bytes > entry.size_bytes for entry in hub)
    assert all(entry.source.startswith("hub:mlx-community/") for entry in hub)


def test_an_unknown_model_names_near_matches_and_all_known_ones(catalogue: Catalogue) -> None:
    with pytest.raises(ModelNotFound) as caught:
        catalogue.get("smolm2-135m-instruct", "chat")
    assert "Did you mean smollm2-135m-instruct" in caught.value.detail
    assert caught.value.extensions["near"][0] == "smollm2-135m-instruct"
    assert "echo" in caught.value.extensions["known"]
    assert "all-minilm-l6-v2" not in caught.value.extensions["known"]


def test_a_model_of_the_wrong_kind_is_refused_by_its_kind(catalogue: Catalogue) -> None:
    with pytest.raises(ModelNotFound, match="'echo' is no embedding model"):
        catalogue.get("echo", "embedding")


def test_a_further_file_adds_and_replaces(tmp_path: Path) -> None:
    extra = tmp_path / "more.toml"
    extra.write_text(
        '[echo]\nkind = "chat"\nformat = "echo"\ndescription = "Mine."\nlicence = "MIT"\n'
        "memory_bytes = 1\ncontext_tokens = 8\n"
        '[mine]\nkind = "chat"\nformat = "mlx"\nhub = "me/mine"\ndescription = "Mine."\n'
        'licence = "MIT"\nmemory_bytes = 1\ncontext_tokens = 8\n'
    )
    catalogue = Catalogue.load(extra)
    assert catalogue.get("echo").description == "Mine."
    assert catalogue.get("mine").source == "hub:me/mine"


def test_each_model_says_what_it_is_good_for_and_what_its_files_are(
    catalogue: Catalogue,
) -> None:
    chat, embedding = catalogue.embedded()
    assert chat.capabilities == ("chat",)
    assert embedding.capabilities == ("embedding",)
    assert "tools" in catalogue.get("qwen3-4b-instruct-2507").capabilities
    assert chat.digest
    assert chat.digest != embedding.digest
    assert len(chat.digest) == 64
    assert catalogue.get("echo").digest is None  # built in
    assert all(entry.digest is None for entry in catalogue.entries if entry.hub)


def test_optional_settings_of_a_model_are_read(tmp_path: Path) -> None:
    extra = tmp_path / "more.toml"
    extra.write_text(
        '[mine]\nkind = "chat"\nformat = "mlx"\nhub = "me/mine"\nrevision = "v1"\n'
        'description = "Mine."\nlicence = "MIT"\nmemory_bytes = 1\ncontext_tokens = 8\n'
        'draft = "smollm2-135m-instruct"\nkv_bits = 8\ncapabilities = ["chat", "vision"]\n'
    )
    entry = Catalogue.load(extra).get("mine")
    assert (entry.draft, entry.kv_bits, entry.revision) == ("smollm2-135m-instruct", 8, "v1")
    assert entry.capabilities == ("chat", "vision")


@pytest.mark.parametrize(
    "text",
    [
        "not toml",
        "number = 1",
        '[x]\nkind = "chat"',
        '["../x"]\nkind = "chat"\nformat = "echo"\ndescription = "d"\nlicence = "l"\n'
        "memory_bytes = 1\ncontext_tokens = 1\n",
        '[x]\nkind = "chat"\nformat = "mlx"\ndescription = "no source"\nlicence = "l"\n'
        "memory_bytes = 1\ncontext_tokens = 1\n",
        '[x]\nkind = "embedding"\nformat = "echo"\ndescription = "no dimension"\nlicence = "l"\n'
        "memory_bytes = 1\ncontext_tokens = 1\n",
        '[x]\nkind = "chat"\nformat = "gguf"\ndescription = "wrong size"\nlicence = "l"\n'
        'memory_bytes = 1\ncontext_tokens = 1\nsize_bytes = 5\npackage = { name = "p", '
        'version = "1", files = [{ member = "m", name = "n", size = 4, sha256 = "'
        + "0" * 64
        + '" }] }\n',
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, text: str) -> None:
    extra = tmp_path / "wrong.toml"
    extra.write_text(text)
    with pytest.raises(InvalidInput, match=r"wrong\.toml"):
        Catalogue.load(extra)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"absent\.toml"):
        Catalogue.load(tmp_path / "absent.toml")
