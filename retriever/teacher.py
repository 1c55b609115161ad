"""Who teaches the retriever: scores mined before, a ranker or an encoder that is asked at each step, or an anchor.

Does not know the optimiser, nor where negatives come from.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from retriever.artifacts import Artifact
from retriever.encoder import DualEncoder
from retriever.errors import CorruptError, InputError, require
from retriever.examples import Batch
from retriever.inference import TOKEN_BUDGETS
from retriever.lora import merged_state
from retriever.losses.teaching import AdversarialOver, TeachingName
from retriever.protocols import BoolArray, FloatArray, Side
from retriever.ranks import Ranks
from retriever.teacher_scores import TeacherScores

Texts = tuple[list[str], list[str]]
"""Queries and passages of a batch."""
STATE = "anchor.safetensors"
OWN, ANCHOR = "ranker", "anchor"


@dataclass(frozen=True)
class TeacherConfig:
    """[teacher]: who teaches the retriever beside its labels, and how; docs/systems.md has a line for each key.

    ``name``: a folder or hub id, "ranker" for the run's own, "anchor" for the model that training starts from.
    ``kind`` of the one named. What is minimised is ``contrastive`` × [loss] + ``weight`` × ``loss``. ``over`` "group":
    a query's positive and its own negatives; "batch": all that it is compared with. A ranker's scores are stored with
    each negative set, of the positives and the best ``depth`` candidates; ``live`` asks it at each step instead.
    ``temperature`` None: 1 for a ranker, the student's for similarities. ``student_temperature`` None: that of [loss].
    ``head``: the teacher is followed by a second head on the vectors, which is not served. ``adversarial`` is AR2's λ.
    ``momentum`` m lets the anchor follow: m·anchor + (1 − m)·weights after each step.
    """

    name: str
    kind: Literal["ranker", "encoder"] = "ranker"
    loss: TeachingName = "kl"
    weight: float = 1.0
    contrastive: float = 1.0
    over: Literal["group", "batch"] = "group"
    temperature: float | None = None
    student_temperature: float | None = None
    live: bool = False
    depth: int | None = None
    max_length: int | None = None
    label: int | str | None = None
    adversarial: float = 0.5
    adversarial_over: AdversarialOver = "all"
    momentum: float | None = None
    head: bool = False

    def __post_init__(self) -> None:
        """Raise InputError for a value out of range, a key that nobody reads here, and what cannot be joined."""
        require(_rules(self), "[teacher] ")
        for field in fields(self):
            if getattr(self, field.name) != field.default and field.name in _unread(self):
                raise InputError(f'[teacher] {field.name}: nothing reads it with loss = "{self.loss}", {self._who}')

    @property
    def _who(self) -> str:
        return f'name = "{self.name}"' if self.name in (OWN, ANCHOR) else f'kind = "{self.kind}"'

    @property
    def gives_vectors(self) -> bool:
        """Whether the teacher is an encoder, whose scores are similarities."""
        return self.name == ANCHOR or (self.name != OWN and self.kind == "encoder")

    @property
    def is_stored(self) -> bool:
        """Whether the teacher's scores come with the negative set."""
        return not (self.gives_vectors or self.live or self.name == OWN)

    @property
    def waits(self) -> bool:
        """Whether nothing is minimised before the first negative set.

        Then there are no stored scores, and a group is one passage, of which no order can be learned.
        """
        alone = self.over == "group" and self.loss not in ("embedding", "cosent")
        return self.contrastive == 0 and (self.is_stored or alone)

    @property
    def settings(self) -> dict[str, Any]:
        """Return what decides a stored score: a set with other ones is not this teacher's."""
        return {"name": self.name, "max_length": self.max_length, "label": self.label}


def _rules(config: TeacherConfig) -> dict[str, bool]:
    temperatures = (config.temperature, config.student_temperature)
    return {
        "weight must be above 0, contrastive not below": config.weight > 0 and config.contrastive >= 0,
        "temperature and student_temperature must be above 0": all(one is None or one > 0 for one in temperatures),
        "depth must be at least 1": config.depth is None or config.depth >= 1,
        "adversarial must lie in [0, 1]": 0 <= config.adversarial <= 1,
        "momentum must lie in (0, 1)": config.momentum is None or 0 < config.momentum < 1,
        'loss = "embedding" needs vectors: a teacher of kind = "encoder", or name = "anchor"': (
            config.loss != "embedding" or config.gives_vectors
        ),
        "head: with contrastive = 0 it would learn in place of what is served": config.contrastive > 0
        or not config.head,
        'loss = "ar2" rewards by log-odds: it needs a ranker': config.loss != "ar2" or not config.gives_vectors,
        'over = "batch": a ranker that is asked at each step scores groups alone': config.over == "group"
        or config.gives_vectors
        or config.is_stored,
        'over = "group": loss = "embedding" takes all texts; leave it out': config.loss != "embedding"
        or config.over == "group",
    }


def _unread(config: TeacherConfig) -> set[str]:
    """Return the keys that have no meaning beside the others."""
    unread = set()
    if config.loss != "ar2":
        unread |= {"adversarial", "adversarial_over"}
    if config.loss in ("embedding", "cosent") or (config.loss == "soft_infonce" and config.gives_vectors):
        unread.add("temperature")
    if config.loss == "embedding":
        unread |= {"student_temperature", "over"}
    if config.name != ANCHOR:
        unread.add("momentum")
    if config.name in (OWN, ANCHOR):
        unread |= {"kind", "live", "max_length", "label"}
    if config.gives_vectors:
        unread |= {"live", "max_length", "label"}
    if not config.is_stored:
        unread.add("depth")
    return unread


@dataclass(frozen=True)
class Taught:
    """``scores`` float [b, n] of a batch, nan where there is none; an encoder's vectors [b, dim] and [n, dim]."""

    scores: Tensor
    queries: Tensor | None = None
    passages: Tensor | None = None


Score = Callable[[Sequence[str], Sequence[str]], FloatArray]
"""Queries and as many passages → a score of each pair, of a ranker its log-odds, float32 [n]."""
Ask = Callable[[Batch, Texts, Ranks], Taught]


class Asked(Protocol):
    """The part of an encoder that a teacher is asked by."""

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        """Return float32 [n, dim]."""
        ...

    def encode_passages(self, texts: Sequence[str]) -> FloatArray:
        """Return float32 [n, dim]."""
        ...


def asking_ranker(score: Score) -> Ask:
    """Return what has ``score`` read each query with its positive and its own negatives.

    Each rank scores a share of the queries.
    """

    def ask(batch: Batch, texts: Texts, ranks: Ranks) -> Taught:
        group = group_of(batch)
        queries, passages = texts

        def of_share(share: slice) -> FloatArray:
            lines, columns = np.nonzero(group[share])
            found = np.full(group[share].shape, np.nan, np.float32)
            asked = queries[share]
            found[lines, columns] = score([asked[i] for i in lines], [passages[j] for j in columns])
            return found

        return Taught(ranks.together(of_share, len(queries)))

    return ask


def asking_encoder(encoder: Asked) -> Ask:
    """Return what has ``encoder`` encode all texts, each rank a share, and compares all queries with all passages."""

    def ask(batch: Batch, texts: Texts, ranks: Ranks) -> Taught:
        queries = ranks.together(lambda share: encoder.encode_queries(texts[0][share]), len(texts[0]))
        passages = ranks.together(lambda share: encoder.encode_passages(texts[1][share]), len(texts[1]))
        return Taught(queries @ passages.T, queries, passages)

    return ask


def group_of(batch: Batch) -> BoolArray:
    """Return bool [b, n]: each query's positive and the negatives that were drawn for it."""
    group = batch.hard.copy()
    group[np.arange(len(group)), batch.positive] = True
    return group


class Anchor:
    """A copy of the model that training starts from which follows the weights slowly: m·anchor + (1 − m)·weights.

    Mean teacher (Tarvainen and Valpola, NeurIPS 2017); against forgetting as in DeGLA. float32, without dropout.
    """

    def __init__(self, model: DualEncoder, momentum: float, device: torch.device) -> None:
        """``model`` is this anchor's own from now on."""
        self._model = model.to(device).eval().requires_grad_(False)
        if device.type == "cpu":
            model.train_fast(torch.float32, checkpointing=False)
        self._momentum = momentum
        self._device = device

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        """Return float32 [n, dim]."""
        return self._encode("query", texts)

    def encode_passages(self, texts: Sequence[str]) -> FloatArray:
        """Return float32 [n, dim]."""
        return self._encode("passage", texts)

    def _encode(self, side: Side, texts: Sequence[str]) -> FloatArray:
        ids = self._model.tokenize(side, texts)[0]
        queries, passages = (ids, []) if side == "query" else ([], ids)
        with torch.no_grad():
            found = self._model(queries, passages, TOKEN_BUDGETS[self._device.type])[side == "passage"]
        vectors: FloatArray = found.float().cpu().numpy()
        return vectors

    @torch.no_grad()
    def follow(self, student: DualEncoder) -> None:
        """Move towards the weights of ``student``, a model of the same kind, its adapters merged."""
        for side, tower in self._model.towers().items():
            theirs = merged_state(student.towers()[side].transformer)
            for name, mine in tower.transformer.named_parameters():
                mine.lerp_(theirs[name].to(mine), 1 - self._momentum)

    def save(self, folder: Path) -> None:
        """Write the weights."""
        save_file({name: weight.contiguous() for name, weight in self._model.named_parameters()}, folder / STATE)

    @torch.no_grad()
    def restore(self, folder: Path) -> bool:
        """Take up what ``save`` wrote; False if it is missing: the anchor stays what training starts from.

        Raises CorruptError for what does not fit.
        """
        if not (folder / STATE).exists():
            return False
        try:
            saved = load_file(folder / STATE)
            for name, weight in self._model.named_parameters():
                weight.copy_(saved[name])
        except (OSError, KeyError, RuntimeError, SafetensorError) as error:
            raise CorruptError(f"{folder / STATE}: cannot be resumed ({error})") from error
        return True


@dataclass
class Teacher:
    """What a step asks: ``ask`` at each, or the scores that ``open_scores`` finds in each adopted negative set.

    ``anchor`` is the one asked, where it moves; ``fingerprint`` tells the scores of one that stays as it is and is
    asked at each step. Without ``config`` nobody teaches.
    """

    config: TeacherConfig | None = None
    ask: Ask | None = None
    open_scores: Callable[[Artifact], TeacherScores] | None = None
    anchor: Anchor | None = None
    fingerprint: str | None = None
    _scores: TeacherScores | None = None

    def of_run(self, score: Score | None) -> "Teacher":
        """Return this teacher, which asks ``score`` where it is the run's own ranker.

        Raises InputError if the run has none.
        """
        if self.config is None or self.config.name != OWN:
            return self
        if score is None:
            raise InputError('[teacher] name = "ranker" is the run\'s own: it needs [ranker]')
        return replace(self, ask=asking_ranker(score))

    def teach(self, batch: Batch, texts: Texts, ranks: Ranks) -> Taught | None:
        """Return what the teacher says of ``batch``, alike on all ranks; before the first negative set all is nan."""
        if self.config is None:
            return None
        if self.ask is not None:
            return self.ask(batch, texts, ranks)
        if self._scores is None:
            return Taught(torch.full(batch.allowed.shape, torch.nan))
        return Taught(torch.from_numpy(self._scores.of_batch(batch.query_rows, batch.passage_rows)))

    def adopt(self, negatives: Artifact) -> None:
        """Take the scores of the negative set in use from now on."""
        if self.open_scores is not None:
            self._scores = self.open_scores(negatives)

    def follow(self, student: DualEncoder) -> None:
        """Move with the ``student`` after a step of its optimiser."""
        if self.anchor is not None:
            self.anchor.follow(student)

    def save(self, folder: Path) -> None:
        """Write into a checkpoint what resuming needs."""
        if self.anchor is not None:
            self.anchor.save(folder)

    def restore(self, folder: Path) -> bool:
        """Take up what ``save`` wrote; False if it is missing."""
        return self.anchor is None or self.anchor.restore(folder)
