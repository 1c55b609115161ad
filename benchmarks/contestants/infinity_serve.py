"""infinity's server. Does not know hone."""

import os
from typing import Any

from infinity_emb import EngineArgs
from infinity_emb.infinity_server import create_server

from benchmarks.contest import compete
from benchmarks.contestants.serving_thread import serve


def load(model: str, dtype: str) -> dict[str, Any]:
    """Serve ``model``; ``dtype`` is "auto", its default, or "bfloat16"."""
    engine = EngineArgs(model_name_or_path=model, device="cpu", dtype=dtype, served_model_name="model", compile=False)
    return {"port": serve(create_server(engine_args_list=[engine]))}


if __name__ == "__main__":
    compete({"load": load}, ["infinity-emb", "transformers", "torch"])
    os._exit(0)  # the server's own threads would wait for requests for ever
