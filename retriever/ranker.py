"""The ranker: a Hugging Face sequence classifier that reads query and passage together and gives the pair one score.

Does not know corpora, batches or training.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from retriever.durable import sha256_json
from retriever.encoder import model_path
from retriever.errors import InputError
from retriever.lora import Adapted, LoraConfig, adapt
from retriever.ranker_files import (
    SETTINGS,
    longest_input,
    refuse_other_modules,
    saved_activation,
    saved_label,
    saved_prompt,
)
from retriever.token_batches import pad
from retriever.tower import (
    DROPOUT_KEYS,
    lower_case,
    tokenizer_sha256,
    transformer_settings,
    usable_positions,
    weights_sha256,
)

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"identity": nn.Identity(), "sigmoid": torch.sigmoid}
HEAD_DROPOUT_KEYS = ("classifier_dropout", "seq_classif_dropout")
INPUTS = ("input_ids", "token_type_ids")
Pair = Mapping[str, list[int]]
"""One tokenised pair: "input_ids" and, where the model reads them, "token_type_ids"."""


@dataclass(frozen=True)
class RankerConfig:
    """[ranker]: which classifier, and how pairs enter and leave it; None takes what the model's own files say.

    ``label`` is the number or name of the label that means relevant; a classifier with several needs one.
    """

    name: str
    max_length: int | None = None
    prompt: str | None = None
    activation: str | None = None
    label: int | str | None = None


class PairClassifier(nn.Module):
    """A sequence classifier, its tokenizer, and its resolved configuration."""

    def __init__(self, classifier: Any, tokenizer: Any, config: RankerConfig) -> None:
        """``config`` must be resolved: no None but ``max_length``, which then is unbounded."""
        super().__init__()
        self.classifier = classifier
        self.tokenizer = tokenizer
        self.config = config
        self.has_fresh_head = False
        self.adapted: Adapted | None = None

    def adapt(self, lora: LoraConfig, seed: int) -> None:
        """Train adapters and the head from now on; ``save_ranker`` writes the weights with them merged.

        Raises InputError like ``retriever.lora.adapt``.
        """
        self.adapted = Adapted(lora, self.config.name, weights_sha256(self.classifier))
        adapt(self.classifier, lora, seed)

    def tokenize(self, queries: Sequence[str], passages: Sequence[str]) -> tuple[list[Pair], int]:
        """Return the tokens of each pair and how many pairs were cut, the longer text of each first."""
        if not queries:  # which the tokenizer refuses
            return [], 0
        assert self.config.prompt is not None
        encoded = self.tokenizer(
            [self.config.prompt + query for query in queries],
            list(passages),
            truncation="longest_first" if self.config.max_length else False,
            max_length=self.config.max_length,
            padding=False,
            return_attention_mask=False,
        )
        cut = sum(bool(one.overflowing) for one in encoded.encodings)
        names = [name for name in INPUTS if name in encoded]
        columns = zip(*(encoded[name] for name in names), strict=True)
        return [dict(zip(names, values, strict=True)) for values in columns], cut

    def pad(self, pairs: Sequence[Pair]) -> dict[str, Tensor]:
        """Return the model's inputs, int64 [n, longest], padded on the tokenizer's side."""
        fill = {"input_ids": self.tokenizer.pad_token_id, "token_type_ids": self.tokenizer.pad_token_type_id}
        step = 1 if self.pads_on_the_right else -1
        padded: dict[str, NDArray[Any]] = {}
        for name in pairs[0]:
            padded[name], padded["attention_mask"] = pad([pair[name][::step] for pair in pairs], fill[name])
        return {name: torch.from_numpy(values[:, ::step].copy()) for name, values in padded.items()}

    @property
    def pads_on_the_right(self) -> bool:
        """Whether a pair's tokens come first, as all but models that read from the end have it."""
        side: str = self.tokenizer.padding_side
        return side == "right"

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the scores float32 [n] of what ``pad`` returned."""
        return self.scores(self.classifier(**inputs).logits)

    def scores(self, logits: Tensor) -> Tensor:
        """Return the scores float32 [n] for logits [n, labels]."""
        assert self.config.activation is not None
        return ACTIVATIONS[self.config.activation](self.log_odds(logits))

    def log_odds(self, logits: Tensor) -> Tensor:
        """Return the log-odds float32 [n] of the relevant label for ``logits`` [n, labels].

        Of several labels, their sigmoid is its softmax probability.
        """
        logits = logits.float()
        if logits.shape[1] == 1:
            return logits[:, 0]
        assert isinstance(self.config.label, int)
        others = [number for number in range(logits.shape[1]) if number != self.config.label]
        return logits[:, self.config.label] - logits[:, others].logsumexp(1)

    def fingerprint(self, dtype: str, engine: str = "torch") -> str:
        """Return what identifies the scores when computed in ``dtype`` by ``engine``."""
        how = {key: value for key, value in asdict(self.config).items() if key != "name"}
        weights, tokenizer = weights_sha256(self.classifier), tokenizer_sha256(self.tokenizer)
        return sha256_json({**how, "weights": weights, "tokenizer": tokenizer, "dtype": dtype, "engine": engine})

    def facts(self) -> dict[str, Any]:
        """Return what a manifest says of this ranker: weights, fingerprint in float32, how pairs enter and leave it."""
        how = {key: value for key, value in asdict(self.config).items() if key != "name"}
        return {"weights_sha256": weights_sha256(self.classifier), "fingerprint": self.fingerprint("fp32"), **how}


def load_ranker(config: RankerConfig) -> PairClassifier:
    """Load the sequence classifier that ``config`` names, a folder or a hub id, a saved CrossEncoder or a plain model.

    Raises InputError if it cannot be found, lacks a trained head, a fast tokenizer or a padding token, or has a part
    that would be left out here, and for a setting that the model does not allow.
    """
    classifier, tokenizer, missing = _opened(config.name, {})
    refuse_other_modules(config.name)
    if missing:
        raise InputError(
            f"[ranker] name = {config.name!r}: holds no weights for {', '.join(missing)}; choose a trained ranker"
        )
    return PairClassifier(classifier, tokenizer, _resolved(config, classifier, tokenizer)).eval()


def start_ranker(config: RankerConfig, seed: int, dropout: float | None = None) -> PairClassifier:
    """Return the classifier that training starts from: as ``load_ranker`` does, or an encoder with a fresh head.

    "minilm" is the packaged encoder. ``seed`` alone decides the head, of one label that is read as its log-odds'
    sigmoid. ``dropout`` None leaves that of the model's files. Raises InputError as ``load_ranker`` does.
    """
    settings = {} if dropout is None else dict.fromkeys((*DROPOUT_KEYS, *HEAD_DROPOUT_KEYS), dropout)
    config = replace(config, name=model_path(config.name))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier, tokenizer, missing = _opened(config.name, settings)
        if not missing:
            refuse_other_modules(config.name)
            return PairClassifier(classifier, tokenizer, _resolved(config, classifier, tokenizer))
        of_encoder = [name for name in missing if name.startswith(f"{classifier.base_model_prefix}.")]
        if of_encoder == missing or not all(".pooler." in name for name in of_encoder):
            lost = f"holds no weights for {', '.join(of_encoder)}"
            raise InputError(f"[ranker] name = {config.name!r}: {lost}; choose a ranker or an encoder")
        torch.manual_seed(seed)
        classifier, tokenizer, _ = _opened(config.name, {**settings, "num_labels": 1})
    fresh = replace(config, prompt=config.prompt or "", activation=config.activation or "sigmoid")
    model = PairClassifier(classifier, tokenizer, _resolved(fresh, classifier, tokenizer))
    model.has_fresh_head = True
    return model


def _opened(name: str, settings: Mapping[str, Any]) -> tuple[Any, Any, list[str]]:
    """Return classifier, tokenizer, and the names of weights that the files lack; ``settings`` go before theirs."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # its bars would cut through our own progress
    try:
        own = AutoConfig.from_pretrained(name)
        for key, value in settings.items():
            if hasattr(own, key):
                setattr(own, key, value)
        with _without_report():  # of missing weights: the caller says it
            classifier, report = AutoModelForSequenceClassification.from_pretrained(
                name, config=own, dtype=torch.float32, output_loading_info=True
            )
        tokenizer = AutoTokenizer.from_pretrained(name)
        saved = transformer_settings(name) or {}
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"[ranker] name = {name!r}: cannot be loaded ({reason}); give a folder or a hub id") from error
    if not tokenizer.is_fast or tokenizer.pad_token_id is None:
        raise InputError(f"[ranker] name = {name!r}: needs a fast tokenizer (tokenizer.json) with a padding token")
    lower_case(tokenizer, saved)
    read = inspect.signature(classifier.forward).parameters  # DistilBERT knows no segments, whatever its tokenizer says
    tokenizer.model_input_names = [one for one in tokenizer.model_input_names if one in read]
    return classifier, tokenizer, sorted(report["missing_keys"])


@contextmanager
def _without_report() -> Iterator[None]:
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # transformers gives it no types
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _resolved(config: RankerConfig, classifier: Any, tokenizer: Any) -> RankerConfig:
    """Fill in what the run leaves to the model's own files. Raises InputError for what the model does not allow."""
    name, positions = config.name, usable_positions(classifier)
    if config.max_length is not None and positions is not None and config.max_length > positions:
        raise InputError(f"[ranker] max_length = {config.max_length}: {name} reads at most {positions} tokens")
    prompt = saved_prompt(name) if config.prompt is None else config.prompt
    taken = len(tokenizer([prompt], [""])["input_ids"][0])  # below that a tokenizer does not cut at all
    if config.max_length is not None and config.max_length <= taken:
        raise InputError(f"[ranker] max_length = {config.max_length}: special tokens and prompt alone take {taken}")
    activation = config.activation or saved_activation(name, classifier.config)
    if activation not in ACTIVATIONS:
        raise InputError(f"[ranker] activation = {activation!r} ({name}): choose one of {', '.join(ACTIVATIONS)}")
    return replace(
        config,
        max_length=config.max_length or longest_input(name, classifier, tokenizer),
        prompt=prompt,
        activation=activation,
        label=_label_number(name, saved_label(name) if config.label is None else config.label, classifier.config),
    )


def _label_number(name: str, label: int | str | None, config: Any) -> int:
    labels: Mapping[int, str] = config.id2label
    numbers: dict[int | str | None, int] = {label_name: number for number, label_name in labels.items()}
    numbers |= {number: number for number in labels}
    if len(labels) == 1:
        numbers[None] = 0
    if label not in numbers:
        known = ", ".join(f"{number} ({label_name})" for number, label_name in labels.items())
        given = "several labels" if label is None else f"no label {label!r}"
        raise InputError(
            f"[ranker] label: {name} has {given}; name the one that means relevant: {known}. Where there is no key "
            f'label, the model\'s folder says it: write {{"label": NUMBER}} into its {SETTINGS}'
        )
    return numbers[label]
