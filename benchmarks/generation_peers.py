"""The peers of ``generation.py``, each in a process of its own: ``ENGINE MODEL PORT [CACHE]``.

``llamacpp`` is llama.cpp's own HTTP server, ``mlx`` is ``mlx_lm.server`` as it is installed, and
``mlx-blas`` the same with the BLAS that UAIT gives to MLX.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from pathlib import Path
from typing import Any

SLOTS, SLOT_TOKENS = 8, 2048


def llamacpp(model: str, port: int) -> None:
    """Serve a GGUF file with llama.cpp's own settings, and as many slots as there are streams."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.port, parameters.verbosity = model, port, -1
    parameters.n_parallel, parameters.n_ctx = SLOTS, SLOTS * SLOT_TOKENS
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    while True:
        time.sleep(3600)


def mlx(model: str, port: int, cache: str | None) -> None:
    """Serve a folder with mlx_lm.server."""
    if cache is not None:
        from uait_server_ext.inference.backends.blas import load_fast_blas
        from uait_server_ext.inference.cache import ModelCache

        os.environ["MLX_DISABLE_COMPILE"] = "1"
        load_fast_blas(ModelCache(Path(cache)))
    server: Any = importlib.import_module("mlx_lm.server")
    sys.argv = ["mlx_lm.server", "--model", model, "--port", str(port), "--log-level", "ERROR"]
    server.main()


def unpack(model: str, folder: str) -> None:
    """Write the weights of a quantised MLX model as 32-bit ones: the fastest on a CPU."""
    import mlx.core as mx

    utils: Any = importlib.import_module("mlx_lm.utils")  # its functions are not annotated
    loaded, tokenizer, config = utils.load(model, return_config=True)
    loaded.set_dtype(mx.float32)
    utils.dequantize_model(loaded)
    config = {key: value for key, value in config.items() if not key.startswith("quantization")}
    utils.save(Path(folder), model, loaded, tokenizer, config)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["llamacpp", path, number]:
            llamacpp(path, int(number))
        case ["mlx", path, number]:
            mlx(path, int(number), None)
        case ["mlx-blas", path, number, root]:
            mlx(path, int(number), root)
        case ["unpack", path, target]:
            unpack(path, target)
        case _:
            sys.exit(__doc__)
