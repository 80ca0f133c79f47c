"""MLX alone, MLX in a batch and llama.cpp at 32 bits say the same, token by token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from tests.unit.inference.driving import Driver, going_on
from tests.unit.inference.test_gguf_models import PROMPTS, write_wide
from tests.unit.inference.test_tokenizer import ask_llamacpp
from uait_server_ext.inference import machine
from uait_server_ext.inference.cache import ModelCache
from uait_server_ext.inference.catalogue import Catalogue
from uait_server_ext.inference.gguf_convert import SOURCE_FILE, to_mlx

pytestmark = pytest.mark.timeout(900)

MODEL = "smollm2-135m-instruct"
TOKENS = 24


@pytest.fixture(scope="module")
def driver(model_cache: Path) -> Any:
    if not (machine.has_module("xllamacpp") and machine.has_module("mlx_lm")):
        pytest.skip("llama.cpp or MLX is not installed here")
    from uait_server_ext.inference.backends.mlx import MlxChat

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENBLAS_NUM_THREADS", "1")  # as in a worker
        patch.setenv("MLX_DISABLE_COMPILE", "1")
        entry, cache = Catalogue.load().get(MODEL), ModelCache(model_cache)
        yield Driver(MlxChat(entry, cache, 1, streams=4, prompt_bytes=0))


@pytest.mark.long
def test_ten_prompts_alone_together_and_by_llamacpp(
    driver: Driver, model_cache: Path, tmp_path: Path
) -> None:
    cache, entry = ModelCache(model_cache), Catalogue.load().get(MODEL)
    from uait_server_ext.inference.backends.mlx import FORM

    folder = cache.derived(entry, FORM, to_mlx)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    write_wide(cache.source(entry) / SOURCE_FILE, tmp_path / "wide.gguf")
    greedy = {"n_predict": TOKENS, "temperature": 0, "return_tokens": True}
    asked: list[tuple[str, Any]] = [
        ("/completion", {"prompt": tokenizer.encode(text).ids, **greedy}) for text in PROMPTS
    ]
    expected = [
        [tokenizer.decode([token], skip_special_tokens=False) for token in answer["tokens"]]
        for answer in ask_llamacpp(tmp_path / "wide.gguf", asked)
    ]

    requests = [going_on(text, max_tokens=TOKENS, logprobs=0) for text in PROMPTS]
    together = [said.tokens for said in driver.run(*requests)]
    alone = [driver.run(request)[0].tokens for request in requests]
    for prompt, one, two, three in zip(PROMPTS, alone, together, expected, strict=True):
        assert one == two, prompt
        length = min(len(one), len(three))  # llama.cpp tells the token that ends an answer, too
        assert length >= 1, prompt
        assert one[:length] == three[:length], prompt
        assert abs(len(one) - len(three)) <= 1, prompt


@pytest.mark.slow
def test_the_first_token_comes_sooner_where_the_prompt_is_known(driver: Driver) -> None:
    facts = " ".join(f"Port {n} has a lighthouse of {n + 10} metres." for n in range(20))
    (first,) = driver.run(going_on(f"{facts} The first", max_tokens=2))
    (second,) = driver.run(going_on(f"{facts} The last", max_tokens=2))
    assert first.cached == 0
    assert second.cached > 200
