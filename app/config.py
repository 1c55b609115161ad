"""One run in TOML: strict reading into the frozen configurations of the modules that use them.

Does not know what is done with them.
"""

import difflib
import json
import tomllib
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from indexer.factory import IndexConfig
from miner.batch_plans import BatchPlanConfig
from miner.mining import MiningConfig
from miner.mixing import MixConfig
from retriever.durable import sha256_json
from retriever.encoder import ModelConfig
from retriever.errors import InputError, require
from retriever.learner import TrainConfig
from retriever.losses.contrastive import LossConfig
from retriever.pair_memory import AuditConfig
from retriever.phases import RETRIEVER_ALONE, PhasesConfig
from retriever.ranker_learner import RankerTrainConfig
from retriever.refresh_policy import RefreshConfig, parse_trigger, staleness_limit
from retriever.staleness import most_changed
from retriever.teacher import OWN, TeacherConfig

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class DataConfig:
    """[data]: a BEIR folder and its splits; "train:0.1" is a tenth carved off train by positive passage."""

    path: str
    train: str = "train"
    dev: str | None = "dev"


@dataclass(frozen=True)
class RunConfig:
    """A whole run; each table is the configuration of the module that it is named after."""

    data: DataConfig
    seed: int = 13
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    ranker: RankerTrainConfig | None = None
    phases: PhasesConfig | None = None
    teacher: TeacherConfig | None = None
    batches: BatchPlanConfig = field(default_factory=BatchPlanConfig)
    mix: MixConfig | None = None
    negatives: MiningConfig = field(default_factory=MiningConfig)
    refresh: RefreshConfig = field(default_factory=RefreshConfig)
    index: IndexConfig = field(default_factory=IndexConfig)
    audit: AuditConfig | None = None

    @property
    def turns(self) -> PhasesConfig:
        """Whose turn each step is."""
        return RETRIEVER_ALONE if self.ranker is None else self.phases or PhasesConfig()

    @property
    def sha256(self) -> str:
        """Digest of every setting, as it stands in each artifact's manifest."""
        return sha256_json(asdict(self))


def read_config(path: Path) -> RunConfig:
    """Read a run.toml; data.path is relative to its folder.

    Raises InputError naming file and key: for a misspelt key with the nearest right one. A value is never turned into
    one of another type.
    """
    return run_config(read_toml(path, "write one with `hone init DATA`"), str(path))


def read_toml(path: Path, advice: str) -> dict[str, Any]:
    """Return the table of a TOML file. Raises InputError naming it, with ``advice`` where it cannot be read."""
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {advice}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not TOML ({error})") from error


def run_config(table: Mapping[str, Any], place: str) -> RunConfig:
    """Return the configuration that ``table`` writes down; errors are InputErrors that begin with ``place``."""
    check_keys(table, RunConfig, place)
    config = validated(table, RunConfig, place)
    try:
        _check_values(config)
    except InputError as error:
        raise InputError(f"{place}: {error}") from error
    return config


def validated(table: Mapping[str, Any], kind: type[Kind], place: str) -> Kind:
    """Return ``table`` as a dataclass of ``kind``. Raises InputError naming ``place`` and the key that does not fit."""
    try:
        # As JSON, where strict still lets a list be a tuple and a table be a dataclass.
        return TypeAdapter(kind).validate_json(json.dumps(table, default=str), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "value_error":  # raised by the table's own checks, which name the key
            raise InputError(f"{place}: {first['ctx']['error']}") from error
        raise InputError(f"{place}: {key}: {first['msg']} (it is {first['input']!r})") from error
    except InputError as error:
        raise InputError(f"{place}: {error}") from error


def data_folder(config: RunConfig, path: Path) -> Path:
    """Return the folder of the data set that the run.toml at ``path`` names."""
    return path.parent / config.data.path


def check_keys(table: Mapping[str, Any], kind: type, place: str, prefix: str = "") -> None:
    """Raise InputError for a key that ``kind``, a dataclass, does not have, naming the nearest that it has."""
    hints = get_type_hints(kind)
    known = [one.name for one in fields(kind)]
    for key, value in table.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1, cutoff=0.5)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"there are {', '.join(prefix + k for k in known)}"
            raise InputError(f"{place}: unknown key {prefix}{key}; {hint}")
        inner = _dataclass_in(hints[key])
        if inner is not None and isinstance(value, Mapping):
            check_keys(value, inner, place, f"{prefix}{key}.")


def _dataclass_in(hint: Any) -> type | None:
    options = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return next((option for option in options if isinstance(option, type) and is_dataclass(option)), None)


def _check_values(config: RunConfig) -> None:
    model, train = config.model, config.train
    parse_trigger(config.refresh.trigger, train.save_every)
    rules = {
        "seed must not be negative": config.seed >= 0,
        "model.query_max_length and passage_max_length must be at least 1": all(
            length is None or length >= 1 for length in (model.query_max_length, model.passage_max_length)
        ),
        "train.max_steps must be at least 1": train.max_steps >= 1,
        "train.batch_size must be at least 1": train.batch_size >= 1,
        "train.accumulation must be at least 1": train.accumulation >= 1,
        "train.num_negatives must not be negative": train.num_negatives >= 0,
        "train.num_negatives must not exceed negatives.depth": train.num_negatives <= config.negatives.depth,
        "train.drawn_negatives must not exceed negatives.depth": (train.drawn_negatives or 0) <= config.negatives.depth,
        "train.learning_rate must be above 0": train.learning_rate > 0,
        "train.warmup_steps must lie in 0 … max_steps": 0 <= train.warmup_steps <= train.max_steps,
        "train.weight_decay must not be negative": train.weight_decay >= 0,
        "train.max_grad_norm must be above 0: the norm to which longer gradients are cut": train.max_grad_norm > 0,
        "train.patience must be at least 1, or absent to train to the end": train.patience is None
        or train.patience >= 1,
        **_ranker_rules(config),
        "train.save_every, log_every and keep_checkpoints must be at least 1": min(
            train.save_every, train.log_every, train.keep_checkpoints
        )
        >= 1,
        "train.drawn_negatives must exceed train.num_negatives, which must be above 0": train.drawn_negatives is None
        or train.drawn_negatives > train.num_negatives > 0,
        'train.towers = "query" needs model.tied = false': train.towers == "both" or not model.tied,
        "mix makes batches of one data set, batches.name plans them across: choose one of the two": config.mix is None
        or config.batches.name == "random",
        'negatives.live searches among passages that stay: it needs train.towers = "query"': not config.negatives.live
        or train.towers == "query",
        "loss.guide_decay lowers hard negatives: it needs train.num_negatives above 0": config.loss.guide_decay is None
        or train.num_negatives > 0,
        "loss.debias needs vectors of length 1: take model.normalize = false out": config.loss.debias is None
        or model.normalize is not False,
        **_refresh_rules(config),
        **({} if config.teacher is None else _teacher_rules(config, config.teacher)),
        "loss.in_batch = false needs train.num_negatives above 0": config.loss.in_batch or train.num_negatives > 0,
    }
    drawn = [] if config.turns.retriever == 0 else [train.drawn_negatives or train.num_negatives]
    config.negatives.check_drawn(*drawn, *([] if config.ranker is None else [config.ranker.num_negatives]))
    require(rules)


def _refresh_rules(config: RunConfig) -> dict[str, bool]:
    refresh, train = config.refresh, config.train
    limit = staleness_limit(refresh.trigger)
    measured, probed = limit is not None, min(refresh.probe_depth, config.negatives.width)
    return {
        "refresh.lag must not be negative": refresh.lag >= 0,
        'refresh.trigger = "never" needs train.num_negatives = 0, since nothing is mined': (
            refresh.trigger != "never" or train.num_negatives == 0
        ),
        'refresh.trigger = "never" needs refresh.on_stale = "warn", since nothing comes': (
            refresh.trigger != "never" or refresh.on_stale == "warn"
        ),
        'refresh.trigger = "once" mines once and for all: on_stale = "wait" would wait for ever': (
            refresh.trigger != "once" or refresh.on_stale != "wait"
        ),
        'batches.name = "b3" is planned with each negative set: it needs a refresh.trigger other than "never"': (
            config.batches.name != "b3" or refresh.trigger != "never"
        ),
        "refresh.query_fraction must lie in (0, 1]": 0 < refresh.query_fraction <= 1,
        "refresh.probe_every must not be negative": refresh.probe_every >= 0,
        "refresh.probe_queries and probe_depth must be at least 1": min(refresh.probe_queries, refresh.probe_depth)
        >= 1,
        "refresh.trigger = staleness needs refresh.probe_every above 0": not measured or refresh.probe_every > 0,
        f'refresh.trigger = "once" with on_stale = "stop" ends the run at step {refresh.max_staleness + 1}, by '
        "refresh.max_staleness; take on_stale out": refresh.trigger != "once"
        or refresh.on_stale != "stop"
        or train.max_steps <= refresh.max_staleness + 1
        or refresh.adopt == "scheduled",
        'refresh.adopt = "scheduled" needs a trigger that is known before: staleness is measured': not measured
        or refresh.adopt == "ready",
        f"refresh.trigger = {refresh.trigger!r} would never come: of {probed} candidates a query, the lesser of "
        "refresh.probe_depth and negatives.depth × sources, too few can change among the first 10": limit is None
        or most_changed(probed) > limit,
        "refresh.share must lie in (0, 1)": 0 < refresh.share < 1,
        'refresh.query_fraction must be 1 where refresh.method = "rescore": it scores the pool of every query anew': (
            refresh.query_fraction == 1 or refresh.method != "rescore"
        ),
        "refresh.full_every must be at least 2": refresh.full_every >= 2,
    }


def _ranker_rules(config: RunConfig) -> dict[str, bool]:
    ranker, phases, train = config.ranker, config.turns, config.train
    if ranker is None:
        return {"phases deals out the steps of a ranker and a retriever: it needs [ranker]": config.phases is None}
    of_ranker, of_retriever = (phases.taken(name, train.max_steps) for name in ("ranker", "retriever"))
    return {
        "phases.ranker must be at least 1; to train the retriever alone take [ranker] out": phases.ranker >= 1,
        "phases.retriever must not be negative; 0 trains the ranker alone": phases.retriever >= 0,
        f"ranker.warmup_steps must not exceed its {of_ranker} of train.max_steps = {train.max_steps}": (
            ranker.warmup_steps <= of_ranker
        ),
        f"train.warmup_steps must not exceed the retriever's {of_retriever} of max_steps = {train.max_steps}": (
            train.warmup_steps <= of_retriever or phases.retriever == 0
        ),
        "ranker.num_negatives must not exceed negatives.depth": ranker.num_negatives <= config.negatives.depth,
        'refresh.trigger = "never" mines nothing, and a ranker learns from mined negatives': (
            config.refresh.trigger != "never"
        ),
        'phases.retriever = 0 leaves the retriever as it is, so nothing becomes stale: set refresh.trigger = "once"': (
            phases.retriever > 0 or config.refresh.trigger == "once"
        ),
        **{
            f"{table} changes what the retriever learns, and phases.retriever = 0 leaves that as it is; take it out": (
                phases.retriever > 0 or not there
            )
            for table, there in {
                "audit": config.audit is not None,
                "mix": config.mix is not None,
                "batches": config.batches.name != "random",
            }.items()
        },
    }


def _teacher_rules(config: RunConfig, teacher: TeacherConfig) -> dict[str, bool]:
    negatives, stored = config.train.num_negatives, teacher.is_stored
    own = teacher.over == "group" and teacher.loss != "embedding"
    return {
        'teacher.over = "group" compares a query\'s own negatives: it needs train.num_negatives above 0': not own
        or negatives > 0,
        'teacher.over = "batch" needs loss.in_batch: without it there is no more than the group': config.loss.in_batch
        or teacher.over == "group",
        'teacher: scores come with what is mined; with refresh.trigger = "never" it needs live = true': not stored
        or config.refresh.trigger != "never",
        "teacher: what negatives.live finds has no stored scores; it needs teacher.live = true": not stored
        or not config.negatives.live,
        "teacher.depth must not be below train.num_negatives": teacher.depth is None or teacher.depth >= negatives,
        "teacher teaches the retriever, which phases.retriever = 0 leaves as it is": config.turns.retriever > 0,
        'teacher.name = "ranker" is the run\'s own: it needs [ranker]': teacher.name != OWN
        or config.ranker is not None,
    }
