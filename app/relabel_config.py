"""relabel.toml: which negatives are suspect, who judges them, and what is done about those that are relevant.

Does not know how any of it is done.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.chat_judge import ChatConfig, ChatJudge
from app.config import check_keys, read_toml, validated
from miner.judges import EncoderRanker, RecordedJudge, ScoreJudge
from miner.relabel import SuspectConfig
from miner.verdicts import ACTIONS, RELABEL
from retriever.encoder import ModelConfig, create_encoder
from retriever.errors import InputError
from retriever.inference import ModelEncoder
from retriever.protocols import Judge
from retriever.ranker import RankerConfig, load_ranker
from retriever.scoring import TorchRanker

ADVICE = "examples/relabel.toml is one"


@dataclass(frozen=True)
class RankerJudge:
    """A judge of kind "ranker": relevant is what a sequence classifier scores at least ``threshold``.

    ``relative``: the threshold is counted from the score of the query's own positive. ``model`` is a folder, relative
    to the file, or a hub id. ``label`` is the number or name of the label that means relevant, where it has several.
    """

    model: str
    threshold: float
    relative: bool = False
    name: str = "ranker"
    max_length: int | None = None
    label: int | str | None = None
    precision: str = "auto"


@dataclass(frozen=True)
class EncoderJudge:
    """A judge of kind "encoder": the same by the inner product of a bi-encoder's vectors."""

    model: str
    threshold: float
    relative: bool = False
    name: str = "encoder"
    precision: str = "auto"


@dataclass(frozen=True)
class FileJudge:
    """A judge of kind "file": judgements recorded before; ``judge``: those lines whose "judge" is this one alone."""

    path: str
    name: str = "file"
    judge: str | None = None


@dataclass(frozen=True)
class PruningConfig:
    """[pruning]: which groups of queries to name as not worth training on; see miner.relabel_report.pruning."""

    group: str = "([^/]+)/"
    above: float = 0.3
    least: int = 20

    def __post_init__(self) -> None:
        """Raise InputError for an expression that names nothing."""
        try:
            brackets = re.compile(self.group).groups
        except re.error as error:
            raise InputError(f"[pruning] group = {self.group!r}: no regular expression ({error})") from error
        if brackets < 1:
            raise InputError(f"[pruning] group = {self.group!r}: put what names the group into brackets")


@dataclass(frozen=True)
class RelabelConfig:
    """relabel.toml as it is written: ``run`` is the run.toml whose negatives are judged, relative to this file.

    ``action``: what a negative that all judges find relevant becomes. ``negatives``: the number of the negative set,
    the newest if none. ``check``: the share of what one judge refuses that the next is asked about all the same.
    """

    run: str
    judges: tuple[dict[str, Any], ...]
    action: str = RELABEL
    negatives: int | None = None
    check: float = 0.0
    suspects: SuspectConfig = field(default_factory=SuspectConfig)
    pruning: PruningConfig = field(default_factory=PruningConfig)

    def __post_init__(self) -> None:
        """Raise InputError naming the key of a value that does not fit."""
        if self.action not in ACTIONS:
            raise InputError(f"action = {self.action!r}: choose from {', '.join(ACTIONS)}")
        if not 0 <= self.check <= 1:
            raise InputError(f"check = {self.check}: write a share from 0 to 1")
        if not self.judges:
            raise InputError("judges: write at least one table [[judges]]")


def read_relabel_config(path: Path) -> RelabelConfig:
    """Read a relabel.toml. Raises InputError naming file and key, a misspelt key with the nearest right one."""
    table = read_toml(path, ADVICE)
    check_keys(table, RelabelConfig, str(path))
    config = validated({"judges": [], **table}, RelabelConfig, str(path))
    for number, judge in enumerate(config.judges):
        _judge_config(judge, f"{path}: judges.{number}")
    return config


def _judge_config(table: Mapping[str, Any], place: str) -> Any:
    given = dict(table)
    kind = given.pop("kind", None)
    if kind not in KINDS:
        raise InputError(f"{place}.kind = {kind!r}: choose from {', '.join(KINDS)}")
    check_keys(given, KINDS[kind][0], place)
    return validated(given, KINDS[kind][0], place)


def open_judges(config: RelabelConfig, path: Path) -> list[Judge]:
    """Open the judges of the relabel.toml at ``path``, in order. Raises InputError for one that cannot be opened."""
    judges: list[Judge] = []
    for number, table in enumerate(config.judges):
        place = f"{path}: judges.{number}"
        try:
            judges.append(KINDS[table["kind"]][1](_judge_config(table, place), path.parent))
        except InputError as error:
            raise InputError(f"{place}: {error}".replace(f"{place}: {place}", place)) from error
    for key in ("name", "fingerprint"):
        if len({getattr(judge, key) for judge in judges}) < len(judges):
            raise InputError(f"{path}: two judges have the same {key}; judges must differ, in their names too")
    return judges


def _local(model: str, folder: Path) -> str:
    return str(folder / model) if (folder / model).exists() else model


def _ranker(config: RankerJudge, folder: Path) -> Judge:
    model = load_ranker(RankerConfig(_local(config.model, folder), config.max_length, label=config.label))
    scorer = TorchRanker(model, config.precision)
    return ScoreJudge(config.name, scorer, config.threshold, relative=config.relative)


def _encoder(config: EncoderJudge, folder: Path) -> Judge:
    encoder = ModelEncoder(create_encoder(ModelConfig(_local(config.model, folder))), config.precision)
    return ScoreJudge(config.name, EncoderRanker(encoder), config.threshold, relative=config.relative)


def _file(config: FileJudge, folder: Path) -> Judge:
    return RecordedJudge(config.name, folder / config.path, config.judge)


def _chat(config: ChatConfig, folder: Path) -> Judge:
    return ChatJudge(config)


KINDS: dict[str, tuple[type, Callable[[Any, Path], Judge]]] = {
    "ranker": (RankerJudge, _ranker),
    "encoder": (EncoderJudge, _encoder),
    "chat": (ChatConfig, _chat),
    "file": (FileJudge, _file),
}
