"""Opening encoders of artifacts: in which precision, and kept while the weights stay the same.

Does not know what they are opened for.
"""

from collections.abc import Callable

from retriever.artifacts import Artifact
from retriever.checkpoint import model_folder
from retriever.encoder import load_encoder
from retriever.inference import TorchEncoder


def encoder_opener(precision: str) -> Callable[[Artifact], TorchEncoder]:
    """Return a function that opens the encoder of a checkpoint or generation; the last one is kept loaded."""
    last: dict[str, TorchEncoder] = {}

    def open_encoder(artifact: Artifact) -> TorchEncoder:
        folder = model_folder(artifact)
        model = artifact.facts["weights_sha256"] + (folder / "hone.json").read_text()
        if model not in last:
            last.clear()
            last[model] = TorchEncoder(load_encoder(folder), precision)
        return last[model]

    return open_encoder


def open_generation_encoder(generation: Artifact) -> TorchEncoder:
    """Open the encoder of a generation in the precision that its vectors were computed in."""
    precision = generation.facts["index_config"]["precision"]
    return TorchEncoder(load_encoder(model_folder(generation)), precision)
