"""hone audit: which labels, data sets and differences to look at first.

Does not know how an audit is carried out.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from app.audit_findings import as_json, suggestions
from app.audit_report import html, summary, tables
from app.audited_runs import RESULTS, find_runs
from app.auditing import audit as carry_out
from app.options import JsonOption, StoreOption, check_writable, print_json, store_path, warn
from app.rankers import named_ranker
from retriever.durable import write_atomic
from retriever.errors import InputError

SHOWN_CHARACTERS = 100


def audit(
    places: Annotated[
        list[Path], typer.Argument(help="run.toml files, stores, or the folder of a comparison.", show_default=False)
    ],
    store: StoreOption = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="The run.toml of a store that is given by itself.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="So many queries in the ranking and on the page.")] = 50,
    lexical: Annotated[bool, typer.Option("--lexical", help="BM25 votes on false negatives, too.")] = False,
    ranker: Annotated[
        Path | None, typer.Option("--ranker", help="Folder of a ranker that votes on the first 1,000 of them.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="The page to write.")] = Path("audit.html"),
    suggest: Annotated[
        Path | None,
        typer.Option(
            "--suggest", help="Write the false negatives that all voters agree on here, as verdicts to be confirmed."
        ),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """List what to look at first: labels that look wrong, likely false negatives, what varies or hurts."""
    for file in (out, suggest):
        if file is not None:
            check_writable(file)
    comparisons = [place for place in places if (place / RESULTS).is_file()]
    if len(comparisons) > 1:
        raise InputError(f"{comparisons[1]}: one comparison at a time; its seeds are another's no more")
    opened = None if ranker is None else named_ranker(str(ranker))
    runs, corpus = find_runs(places, store_path(store), config, warn)
    audited = carry_out(runs, corpus, comparisons, limit, warn, lexical=lexical, ranker=opened)
    result = as_json(audited)
    write_atomic(out, html(result).encode())
    if suggest is not None:
        lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in suggestions(audited)]
        write_atomic(suggest, "".join(lines).encode())
    if json_output:
        print_json({**result, "report": str(out)})
        return
    for sentence in summary(result):
        print(sentence)
    for title, _, header, rows in tables(result):
        print(f"\n{title}")
        for row in _aligned([list(header), *rows]):
            print(row)
    print("\nLook first at")
    for number, item in enumerate(result["items"], 1):
        print(f"{number:4} {item['query']}: {' '.join(item['text'].split())[:SHOWN_CHARACTERS]}")
        for finding in item["findings"]:
            about = " ".join(finding["passages"])
            print(f"       {finding['audit']}: {finding['reason']} {about}".rstrip())
    print(f"page: {out}")


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
