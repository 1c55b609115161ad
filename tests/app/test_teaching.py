"""[teacher] in a run.toml, from the file to the trained model: each kind of teacher, its scores, what is refused."""

import json
from collections import Counter
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from transformers import BertConfig, BertModel

from app.composition import Run, make_trainer
from app.rankers import teaching_ranker
from app.refreshing import InlineRefresher, RefreshSteps
from retriever.artifacts import CURRENT, Artifact
from retriever.errors import InputError
from retriever.negatives import MAY_BE_DRAWN, open_negative_set
from retriever.teacher import TeacherConfig
from retriever.teacher_scores import open_teacher_scores
from tests.app.command_line import opened, silent, write_run
from tests.tiny_model import write_tiny_model
from tests.tiny_ranker import write_tiny_ranker


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_ranker(tmp_path_factory.mktemp("ranker"))


def taught(tiny: Path, folder: Path, keys: str, *changes: tuple[str, str]) -> Run:
    """A run with [teacher] ``keys``, each query with two negatives of its own."""
    folder.mkdir(exist_ok=True)
    table = ("[negatives]", f"[teacher]\n{keys}\n[negatives]")
    two = ("max_steps = 6", "max_steps = 6\nnum_negatives = 2")
    config = write_run(folder / "run.toml", tiny / "data", tiny / "model", two, table, *changes)
    return opened(config, folder / "store")


def train(run: Run) -> list[dict[str, Any]]:
    """The reports of all steps of the run."""
    told: list[tuple[str, dict[str, Any]]] = []

    def report(event: str, **fields: Any) -> None:
        told.append((event, fields))

    assert make_trainer(run, InlineRefresher(run, report), report, Event()).run().reason == "finished"
    return [fields for event, fields in told if event == "step"]


def sets(run: Run) -> list[Artifact]:
    return [run.store.negatives.at(number) for number in run.store.negatives.numbers()]


def weights(run: Run) -> str:
    newest = run.store.checkpoints.get(CURRENT)
    assert newest is not None
    found: str = newest.facts["weights_sha256"]
    return found


def test_scores_are_stored_with_each_set_and_reach_the_loss(tiny: Path, tmp_path: Path, ranker: Path) -> None:
    run = taught(tiny, tmp_path, f'name = "{ranker}"\nloss = "margin_mse"')
    steps = train(run)
    opened_ranker = teaching_ranker(TeacherConfig(str(ranker)), "fp32")
    for artifact in sets(run):
        pool = open_negative_set(artifact.path)
        scores = open_teacher_scores(artifact.path, pool)
        assert scores is not None
        lines, columns = np.nonzero(np.isin(pool.verdicts, MAY_BE_DRAWN))
        queries = [run.train.texts[line] for line in lines.tolist()]
        expected = opened_ranker.score(queries, run.corpus.texts(pool.passages[lines, columns]))
        np.testing.assert_allclose(scores.candidates[lines, columns], expected, atol=1e-5)
        facts = artifact.facts["teacher"]
        assert facts["name"] == str(ranker) and facts["fingerprint"] == opened_ranker.fingerprint
        assert artifact.facts["seconds"]["teacher"] > 0
    made = [artifact.facts["teacher"] for artifact in sets(run)]
    assert made[0]["reused"] == 0 and made[1]["reused"] > 0, "the positives at least are known"
    assert all(one["scored"] + one["reused"] == one["pairs"] for one in made)
    assert [one["unscored"] for one in steps] == [0] * 6 and all(one["teacher_loss"] > 0 for one in steps)


def test_a_set_mined_again_has_nothing_scored(tiny: Path, tmp_path: Path, ranker: Path) -> None:
    run = taught(tiny, tmp_path, f'name = "{ranker}"')
    train(run)
    generation = run.store.generations.get(CURRENT)
    assert generation is not None
    again = RefreshSteps(run, silent).mine(generation)
    assert again.facts["teacher"]["scored"] == 0
    assert again.sha256("teacher.npy") == sets(run)[-2].sha256("teacher.npy")


def test_a_depth_leaves_the_rest_unscored_and_counts_it(tiny: Path, tmp_path: Path, ranker: Path) -> None:
    run = taught(tiny, tmp_path, f'name = "{ranker}"\ndepth = 2')
    steps = train(run)
    pool = open_negative_set(sets(run)[0].path)
    scores = open_teacher_scores(sets(run)[0].path, pool)
    assert scores is not None
    drawable = np.isin(pool.verdicts, MAY_BE_DRAWN)
    assert (np.isfinite(scores.candidates) & drawable).sum(axis=1).max() == 2
    assert sum(one["unscored"] for one in steps) > 0


TEACHERS = [
    'name = "{ranker}"\nlive = true\nloss = "ar2"\nadversarial_over = "negatives"\ncontrastive = 0.0',
    'name = "{ranker}"\nover = "batch"\nloss = "cosent"',
    'name = "{ranker}"\nloss = "soft_infonce"\ntemperature = 2.0',
    'name = "{encoder}"\nkind = "encoder"\nloss = "embedding"\nweight = 0.5',
    'name = "{encoder}"\nkind = "encoder"\nover = "batch"\nloss = "kl"',
    'name = "anchor"\nloss = "embedding"',
    'name = "{ranker}"\nhead = true',
    'name = "anchor"\nover = "batch"\nmomentum = 0.9',
]


@pytest.fixture(scope="module")
def bare(tiny: Path, ranker: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights of a run whose teacher has next to nothing to say."""
    run = taught(tiny, tmp_path_factory.mktemp("bare"), f'name = "{ranker}"\nweight = 1e-12')
    train(run)
    return weights(run)


@pytest.mark.parametrize("keys", TEACHERS)
def test_each_kind_of_teacher_trains_to_the_end_and_changes_what_is_learned(
    tiny: Path, tmp_path: Path, ranker: Path, bare: str, keys: str
) -> None:
    write_tiny_model(tmp_path / "encoder", seed=4)
    run = taught(tiny, tmp_path / "taught", keys.format(ranker=ranker, encoder=tmp_path / "encoder"))
    steps = train(run)
    assert len(steps) == 6 and all(np.isfinite(one["teacher_loss"]) for one in steps)
    assert weights(run) != bare
    assert ("teacher" in sets(run)[0].facts) is ("live" not in keys and '"{ranker}"' in keys)
    saved = run.store.checkpoints.get(CURRENT)
    assert saved is not None and (saved.path / "training/anchor.safetensors").exists() is ("momentum" in keys)


def test_a_teacher_asked_at_each_step_says_what_a_stored_one_does(tiny: Path, tmp_path: Path, ranker: Path) -> None:
    losses = []
    for name, live in (("stored", "false"), ("asked", "true")):
        run = taught(tiny, tmp_path / name, f'name = "{ranker}"\nlive = {live}')
        losses.append([one["teacher_loss"] for one in train(run)])
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


def test_a_ranker_of_probabilities_teaches_by_log_odds(tiny: Path, tmp_path: Path) -> None:
    folder = write_tiny_ranker(tmp_path / "sigmoid")
    settings = json.loads((folder / "config.json").read_text())
    settings["sentence_transformers"] = {"activation_fn": "torch.nn.modules.activation.Sigmoid"}
    (folder / "config.json").write_text(json.dumps(settings))
    scores = teaching_ranker(TeacherConfig(str(folder)), "fp32").score(
        ["baka"] * 9, [f"be{a}i" for a in "klmn"] * 2 + ["bodu"]
    )
    assert scores.min() < 0 or scores.max() > 1


@pytest.mark.parametrize(
    ("keys", "changes", "message"),
    [
        ('name = "r"', [("num_negatives = 2", "num_negatives = 0")], "needs train.num_negatives above 0"),
        ('name = "r"', [('"steps:3"', '"never"')], "live = true|num_negatives = 0"),
        ('name = "anchor"\nover = "batch"', [("[refresh]", "[loss]\nin_batch = false\n[refresh]")], "no more than"),
        ('name = "r"\ndepth = 1', [], "depth must not be below train.num_negatives"),
        ('name = "ranker"', [], r"needs \[ranker\]"),
        (
            'name = "anchor"',
            [
                ("[refresh]", '[ranker]\nname = "r"\nwarmup_steps = 1\n[phases]\nretriever = 0\n[refresh]'),
                ('"steps:3"', '"once"'),
            ],
            "phases.retriever = 0 leaves as it is",
        ),
        ('name = "r"\nloss = "embedding"', [], 'run.toml: \\[teacher\\] loss = "embedding" needs vectors'),
        ('name = "r"\nlosss = "kl"', [], "unknown key teacher.losss; did you mean teacher.loss"),
        ('name = "r"\nlive = 1', [], "teacher.live"),
    ],
)
def test_what_contradicts_the_rest_of_the_run_is_refused_at_its_start(
    tiny: Path, tmp_path: Path, keys: str, changes: list[tuple[str, str]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        taught(tiny, tmp_path, keys, *changes)


def test_vectors_of_another_length_cannot_be_copied(tiny: Path, tmp_path: Path) -> None:
    run = taught(tiny, tmp_path / "run", f'name = "{wider(tmp_path / "wide")}"\nkind = "encoder"\nloss = "embedding"')
    with pytest.raises(InputError, match=r"have 48 numbers, those of .* 32; choose another loss"):
        make_trainer(run, InlineRefresher(run, silent), silent, Event())


def wider(folder: Path) -> Path:
    """A tiny encoder whose vectors have 48 numbers."""
    write_tiny_model(folder)
    settings = BertConfig.from_pretrained(folder)
    settings.hidden_size = 48
    BertModel(settings).save_pretrained(folder)
    return folder


def test_a_set_without_the_teachers_scores_is_refused_with_what_to_do(tiny: Path, tmp_path: Path, ranker: Path) -> None:
    bare = write_run(tmp_path / "run.toml", tiny / "data", tiny / "model")
    run = opened(bare, tmp_path / "store")
    train_steps = Counter(fields["step"] for fields in train(run))
    assert len(train_steps) == 6
    newest = sets(run)[-1]
    named = taught(tiny, tmp_path, f'name = "{ranker}"')
    trainer = make_trainer(named, InlineRefresher(named, silent), silent, Event())
    with pytest.raises(InputError, match=r"holds no teacher scores, .* begin anew with --new"):
        trainer._parts.retriever.teacher.adopt(newest)


def test_a_set_scored_by_another_teacher_is_refused(tiny: Path, tmp_path: Path, ranker: Path) -> None:
    run = taught(tiny, tmp_path, f'name = "{ranker}"')
    train(run)
    other = taught(tiny, tmp_path, f'name = "{ranker}"\nmax_length = 16')
    trainer = make_trainer(other, InlineRefresher(other, silent), silent, Event())
    with pytest.raises(InputError, match=r"another teacher \(max_length None, this run's is 16\)"):
        trainer._parts.retriever.teacher.adopt(sets(run)[-1])


def test_a_name_that_is_no_ranker_is_said_to_be_the_teachers(tiny: Path, tmp_path: Path) -> None:
    run = taught(tiny, tmp_path, f'name = "{tmp_path / "nowhere"}"')
    with pytest.raises(InputError, match=r"^\[teacher\] name = .*nowhere'"):
        train(run)
