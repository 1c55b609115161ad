from pathlib import Path

import pytest

from app.config import RunConfig, data_folder, read_config
from miner.communities import B3
from retriever.errors import InputError
from retriever.phases import RETRIEVER_ALONE, PhasesConfig

WHOLE = """\
seed = 7
[data]
path = "py"
train = "train"
dev = "train:0.1"
[model]
name = "some/model"
tied = false
pooling = "cls"
normalize = true
query_prompt = "query: "
passage_prompt = ""
query_max_length = 32
passage_max_length = 96
[train]
max_steps = 600
batch_size = 16
num_negatives = 2
learning_rate = 5e-5
warmup_steps = 60
precision = "bf16"
save_every = 50
patience = 3
[loss]
name = "infonce"
temperature = 1
in_batch = true
[negatives]
sources = ["ann", "bm25"]
depth = 100
range_min = 5
relative_margin = 0.05
sampler = { name = "simans", b = 1.5 }
verdicts = "judged.jsonl"
iqr = 1.5
[batches]
name = "b3"
community = 8
[refresh]
trigger = "0-1000:500,1000-:1000"
adopt = "scheduled"
lag = 100
query_fraction = 0.5
method = "partial"
share = 0.3
full_every = 4
max_staleness = 1000
on_stale = "wait"
[index]
factory = "IVF4,Flat"
target_recall = 0.9
search = { nprobe = 2 }
"""
"""Each table of the architecture's run.toml, with other values than the defaults."""


def read(folder: Path, text: str) -> RunConfig:
    path = folder / "run.toml"
    path.write_text(text)
    return read_config(path)


def refused(folder: Path, text: str) -> str:
    with pytest.raises(InputError) as error:
        read(folder, text)
    path, _, message = str(error.value).partition(": ")
    assert path == str(folder / "run.toml")
    return message


def test_every_table_reaches_the_configuration_of_its_module(tmp_path: Path) -> None:
    config = read(tmp_path, WHOLE)
    assert config.seed == 7 and config.data.dev == "train:0.1"
    assert (config.model.tied, config.model.pooling, config.model.query_prompt) == (False, "cls", "query: ")
    assert (config.train.max_steps, config.train.learning_rate, config.train.patience) == (600, 5e-5, 3)
    assert config.loss.temperature == 1.0 and isinstance(config.loss.temperature, float)
    assert (config.negatives.sources, config.negatives.sampler.name) == (("ann", "bm25"), "simans")
    assert dict(config.negatives.sampler.knobs) == {"a": 0.5, "b": 1.5, "standardize": True}
    assert (config.negatives.filters.iqr, config.negatives.verdicts) == (1.5, "judged.jsonl")
    assert config.batches.b3(16) == B3(first_rank=30, ranks=100, community=8, batch_size=16)
    assert (config.refresh.adopt, config.refresh.query_fraction) == ("scheduled", 0.5)
    assert (config.index.factory, config.index.search) == ("IVF4,Flat", {"nprobe": 2})


def test_the_path_of_the_data_is_all_that_must_be_said(tmp_path: Path) -> None:
    config = read(tmp_path, '[data]\npath = "py"\n')
    assert config.seed == 13 and config.data.train == "train" and config.negatives.depth == 200
    assert data_folder(config, tmp_path / "run.toml") == tmp_path / "py"
    assert data_folder(config, Path("runs/run.toml")) == Path("runs/py")
    assert "data" in refused(tmp_path, "seed = 1\n") and "data.path" in refused(tmp_path, "[data]\n")


def test_the_digest_tells_settings_apart_not_their_spelling(tmp_path: Path) -> None:
    digest = read(tmp_path, WHOLE).sha256
    assert read(tmp_path, WHOLE.replace("[model]", "# a word\n[model]").replace("5e-5", "0.00005")).sha256 == digest
    changes = {
        "seed = 7": "seed = 8",
        "train:0.1": "train:0.2",
        "normalize = true": "normalize = false",
        "batch_size = 16": "batch_size = 8",
        "temperature = 1": "temperature = 0.5",
        '{ name = "simans", b = 1.5 }': '{ name = "uniform" }',
        "lag = 100": "lag = 99",
        "{ nprobe = 2 }": "{ nprobe = 3 }",
    }
    digests = {read(tmp_path, WHOLE.replace(old, new)).sha256 for old, new in changes.items()}
    assert len(digests | {digest}) == len(changes) + 1


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("[negatives]", "[negative]", "unknown key negative; did you mean negatives?"),
        ("max_steps", "max_step", "unknown key train.max_step; did you mean train.max_steps?"),
        ("batch_size", "batchsize", "unknown key train.batchsize; did you mean train.batch_size?"),
        ("temperature", "temprature", "unknown key loss.temprature; did you mean loss.temperature?"),
        (
            '{ name = "simans", b = 1.5 }',
            '{ nam = "simans" }',
            "unknown key negatives.sampler.nam; did you mean negatives.sampler.name?",
        ),
        ("factory", "zzz", "unknown key index.zzz; there are index.factory, index.target_recall, "),
    ],
)
def test_a_misspelt_key_is_told_the_nearest(tmp_path: Path, right: str, wrong: str, message: str) -> None:
    assert refused(tmp_path, WHOLE.replace(right, wrong)).startswith(message)


@pytest.mark.parametrize(
    ("right", "wrong", "key"),
    [
        ("seed = 7", 'seed = "7"', "seed"),
        ("seed = 7", "seed = 2020-01-01", "seed"),
        ("max_steps = 600", 'max_steps = "600"', "train.max_steps"),
        ("max_steps = 600", "max_steps = 6.5", "train.max_steps"),
        ("batch_size = 16", "batch_size = true", "train.batch_size"),
        ("learning_rate = 5e-5", 'learning_rate = "5e-5"', "train.learning_rate"),
        ("tied = false", 'tied = "no"', "model.tied"),
        ("in_batch = true", "in_batch = 1", "loss.in_batch"),
        ('name = "some/model"', "name = 3", "model.name"),
        ('sources = ["ann", "bm25"]', 'sources = "ann"', "negatives.sources"),
        ('precision = "bf16"', 'precision = "fp16"', "train.precision"),
        ('precision = "bf16"', 'device = "cuda:1"', "train.device"),
        ('adopt = "scheduled"', 'adopt = "soon"', "refresh.adopt"),
        ("search = { nprobe = 2 }", 'search = { nprobe = "two" }', "index.search.nprobe"),
    ],
)
def test_a_value_of_the_wrong_type_names_its_key(tmp_path: Path, right: str, wrong: str, key: str) -> None:
    message = refused(tmp_path, WHOLE.replace(right, wrong))
    assert message.startswith(f"{key}: ") and wrong.split("= ")[-1].strip('{}" ').lower() in message.lower()


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("seed = 7", "seed = -1"),
        ("passage_max_length = 96", "passage_max_length = 0"),
        ("max_steps = 600", "max_steps = 0"),
        ("batch_size = 16", "batch_size = 0"),
        ("num_negatives = 2", "num_negatives = -1"),
        ("num_negatives = 2", "num_negatives = 101"),
        ("learning_rate = 5e-5", "learning_rate = 0.0"),
        ("learning_rate = 5e-5", "learning_rate = nan"),
        ("warmup_steps = 60", "warmup_steps = 601"),
        ("save_every = 50", "save_every = 0"),
        ("save_every = 50", "weight_decay = -0.1"),
        ("save_every = 50", "max_grad_norm = 0.0"),
        ("patience = 3", "patience = 0"),
        ("temperature = 1", "temperature = 0"),
        ("depth = 100", "depth = 0"),
        ("range_min = 5", "range_min = 200"),
        ("lag = 100", "lag = -1"),
        ("query_fraction = 0.5", "query_fraction = 1.5"),
        ("share = 0.3", "share = 1.0"),
        ("share = 0.3", "share = 0.0"),
        ("full_every = 4", "full_every = 1"),
        ('method = "partial"', 'method = "cheap"'),
        ('trigger = "0-1000:500,1000-:1000"', 'trigger = "often"'),
        ('trigger = "0-1000:500,1000-:1000"', 'trigger = "never"'),
        ("target_recall = 0.9", "target_recall = 1.1"),
        ('name = "simans", b', 'name = "bottom", b'),
        ("b = 1.5", "tau = 1.5"),
        ("b = 1.5", "a = -1"),
        ("iqr = 1.5", "iqr = nan"),
        ('name = "b3"', 'name = "ngame"'),
        ("community = 8", "community = 1"),
        ('method = "partial"', 'method = "rescore"'),
        ('sources = ["ann", "bm25"]', 'sources = ["bm26"]'),
    ],
)
def test_a_value_out_of_range_names_file_and_key(tmp_path: Path, right: str, wrong: str) -> None:
    assert WHOLE.count(right) == 1
    message = refused(tmp_path, WHOLE.replace(right, wrong))
    assert wrong.split(" =")[0] in message, message


def test_no_negatives_at_all_is_refused(tmp_path: Path) -> None:
    text = WHOLE.replace("in_batch = true", "in_batch = false").replace("num_negatives = 2", "num_negatives = 0")
    assert "in_batch" in refused(tmp_path, text)


def test_a_run_that_is_never_refreshed_waits_for_nothing_and_draws_nothing(tmp_path: Path) -> None:
    text = '[data]\npath = "py"\n[train]\nnum_negatives = {}\n[refresh]\ntrigger = "never"\non_stale = "{}"\n'
    assert read(tmp_path, text.format(0, "warn")).refresh.trigger == "never"
    assert "train.num_negatives" in refused(tmp_path, text.format(1, "warn"))
    assert "refresh.on_stale" in refused(tmp_path, text.format(0, "wait"))
    assert '"b3"' in refused(tmp_path, text.format(0, "warn") + '[batches]\nname = "b3"\n')
    assert 'trigger = "once"' in refused(tmp_path, text.format(0, "wait").replace("never", "once"))


def test_a_trigger_that_would_never_come_and_a_run_that_would_surely_stop_are_refused(tmp_path: Path) -> None:
    text = '[data]\npath = "py"\n[train]\nmax_steps = 1002\n[refresh]\n{}\n'
    stale = 'trigger = "staleness:0.3"\nprobe_depth = {}'
    assert read(tmp_path, text.format(stale.format(14))).refresh.probe_depth == 14
    assert "of 13 candidates" in refused(tmp_path, text.format(stale.format(13)))
    shallow = text.format(stale.format(30)) + "[negatives]\ndepth = 12\n"
    assert "refresh.probe_depth and negatives.depth × sources" in refused(tmp_path, shallow)
    assert read(tmp_path, shallow + 'sources = ["ann", "bm25"]\n').negatives.width == 24
    once = text.format('trigger = "once"\non_stale = "stop"')
    assert "ends the run at step 1001" in refused(tmp_path, once)
    assert read(tmp_path, once.replace("1002", "1001")).refresh.on_stale == "stop"
    assert read(tmp_path, once + 'adopt = "scheduled"\n').refresh.on_stale == "stop"


@pytest.mark.parametrize("table", ["[audit]", '[mix]\nby = "sizes"', '[batches]\nname = "ngame"'])
def test_what_a_retriever_that_stays_would_not_read_is_refused(tmp_path: Path, table: str) -> None:
    text = '[data]\npath = "py"\n[ranker]\nname = "minilm"\n[phases]\nretriever = {}\n[refresh]\ntrigger = "once"\n'
    assert read(tmp_path, text.format(0)).turns.retriever == 0
    assert read(tmp_path, text.format(60) + table).turns.retriever == 60
    name = table[1:].partition("]")[0]
    assert f"{name} changes what the retriever learns" in refused(tmp_path, text.format(0) + table)


def test_what_is_no_toml_file(tmp_path: Path) -> None:
    assert "not TOML" in refused(tmp_path, "seed = \n")
    (tmp_path / "latin").write_bytes(b'[data]\npath = "\xe9"\n')
    for name, reason in (("latin", "not TOML"), ("none.toml", "No such file"), (".", "Is a directory")):
        with pytest.raises(InputError, match=reason):
            read_config(tmp_path / name)


RANKED = """
[ranker]
name = "minilm"
max_length = 128
loss = { name = "gce", gce_q = 0.5 }
batch_size = 8
num_negatives = 15
learning_rate = 1e-5
[phases]
ranker = 10
retriever = 30
"""


def test_a_ranker_and_its_phases_reach_the_trainer_s_configuration(tmp_path: Path) -> None:
    config = read(tmp_path, WHOLE + RANKED)
    assert config.ranker is not None and config.turns == PhasesConfig(10, 30)
    assert (config.ranker.loss.name, config.ranker.loss.gce_q, config.ranker.num_negatives) == ("gce", 0.5, 15)
    assert (config.ranker.model.name, config.ranker.model.max_length) == ("minilm", 128)
    assert read(tmp_path, WHOLE).turns == RETRIEVER_ALONE
    without = RANKED.partition("[phases]")[0]
    assert read(tmp_path, WHOLE + without).turns == PhasesConfig(20, 60)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"[ranker]": "[index.search]"}, "phases deals out the steps of a ranker and a retriever: it needs [ranker]"),
        ({"\nranker = 10": "\nranker = 0"}, "phases.ranker must be at least 1; to train the retriever alone"),
        ({"retriever = 30": "retriever = -1"}, "phases.retriever must not be negative; 0 trains the ranker alone"),
        ({"retriever = 30": "retriever = 0"}, 'nothing becomes stale: set refresh.trigger = "once"'),
        ({"batch_size = 8": "warmup_steps = 151"}, "ranker.warmup_steps must not exceed its 150 of train.max_steps"),
        (
            {"max_steps = 600": "max_steps = 75"},
            "train.warmup_steps must not exceed the retriever's 55 of max_steps = 75",
        ),
        ({"num_negatives = 15": "num_negatives = 101"}, "ranker.num_negatives must not exceed negatives.depth"),
        ({'name = "gce", gce_q = 0.5': 'name = "margin_mse"'}, "learns a teacher's margins: name one as teacher"),
        ({'name = "gce"': 'name = "em"'}, 'loss.gce_q: name = "em" does not read it'),
        ({'name = "gce"': 'name = "focal"'}, "ranker.loss.name: "),
        ({"max_length = 128": 'teacher = "some/ranker"'}, "does not read its scores; take it out"),
        ({"max_length = 128": "max_lenght = 128"}, "unknown key ranker.max_lenght; did you mean ranker.max_length?"),
        ({'name = "minilm"\n': ""}, "ranker.name: "),
    ],
)
def test_a_ranker_that_contradicts_the_run_is_refused_with_the_reason(
    tmp_path: Path, changes: dict[str, str], reason: str
) -> None:
    text = WHOLE + RANKED
    for right, wrong in changes.items():
        assert text.count(right) == 1, right
        text = text.replace(right, wrong)
    if "[index.search]" in text:
        text = WHOLE + "[phases]" + RANKED.partition("[phases]")[2]
    assert reason in refused(tmp_path, text)


def test_a_ranker_needs_mined_negatives(tmp_path: Path) -> None:
    text = '[data]\npath = "py"\n[train]\nnum_negatives = 0\n[refresh]\ntrigger = "never"\n[ranker]\nname = "minilm"\n'
    assert "a ranker learns from mined negatives" in refused(tmp_path, text)
