"""A cleaned data set: a BEIR folder whose training qrels are as verdicts correct them.

Does not know who judged.
"""

import shutil
from pathlib import Path

from app.composition import splits
from app.config import RunConfig
from miner.verdicts import DROP_EXAMPLE, RELABEL, read_verdicts
from retriever.beir import find_file, find_qrels
from retriever.beir_writer import write_qrels
from retriever.data import Corpus, QuerySet
from retriever.durable import appearing
from retriever.errors import InputError
from retriever.ingest import load_query_set
from retriever.trec import read_qrels

CARVED_DEV = "dev"


def check_out(out: Path) -> None:
    """Raise InputError if ``out`` holds anything, as the data set itself would."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"--write-data {out}: exists already; name another folder")


def write_relabelled(
    run: RunConfig, folder: Path, out: Path, corpus: Corpus, queries: QuerySet, verdicts: Path
) -> dict[str, int]:
    """Write the data set in ``folder`` to ``out``, corrected, and return what changed; ``verdicts`` goes into it, too.

    Passages, queries and the other splits are copied as they are. Where the run carves dev off train, the two are
    written as train and dev, for with other positives a carving would fall elsewhere. A pair that the qrels judge
    themselves stays as it is. Raises InputError if ``out`` holds anything.
    """
    check_out(out)
    found, name = find_qrels(folder), run.data.train.partition(":")[0]
    parts = _parts(run, folder, corpus, queries, name)
    judged = read_verdicts(verdicts, corpus, queries, lambda _: None)
    dropped = {queries.ids[key // len(corpus)] for key in judged.acted_on(DROP_EXAMPLE).tolist()}
    pairs = [divmod(key, len(corpus)) for key in judged.acted_on(RELABEL).tolist()]
    added = [(queries.ids[q], corpus.id(p), 1) for q, p in pairs if p not in queries.judgements[q]]
    added = [one for one in added if one[0] not in dropped]
    with appearing(out) as stage:
        (stage / "qrels").mkdir(parents=True)
        others = [path for split, path in found.items() if split not in parts]
        for path in (find_file(folder, "corpus.jsonl"), find_file(folder, "queries.jsonl"), *others):
            shutil.copyfile(path, stage / path.relative_to(folder))
        shutil.copyfile(verdicts, stage / verdicts.name)
        lines = [line[1:] for line in read_qrels(found[name])]
        for split, ids in parts.items():
            kept = [line for line in lines if ids is None or line[0] in ids]
            if split == name:
                kept = [line for line in kept if line[0] not in dropped] + added
            write_qrels(stage / "qrels" / f"{split}.tsv", kept)
    return {"positives_added": len(added), "queries_dropped": len(dropped)}


def _parts(run: RunConfig, folder: Path, corpus: Corpus, queries: QuerySet, name: str) -> dict[str, set[str] | None]:
    """Return the splits to write anew, and which queries each has; None: all that the qrels of ``name`` have."""
    train, dev = splits(run)
    if train == name:
        return {name: None}
    parts: dict[str, set[str] | None] = {name: set(queries.ids)}
    if dev is not None and dev.startswith(f"{name}:"):
        if CARVED_DEV in find_qrels(folder):
            raise InputError(f'{folder}: has a split dev beside the dev = "{dev}" of the run; write data.dev = "dev"')
        parts[CARVED_DEV] = set(load_query_set(folder, dev, corpus, skip_missing=True, warn=lambda _: None).ids)
    return parts
