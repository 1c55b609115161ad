"""/livez, /readyz, /metrics and the start page: whether the server lives and answers, what it did, what it serves.

Does not know how a snapshot is loaded.
"""

from html import escape

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, Response
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from app.replies import errors, reply
from app.schemas import LiveReply, ReadyReply
from app.service import ReadyOf, ServiceOf
from app.snapshot import Serving

router = APIRouter(tags=["health"])

PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>hone</title>
<style>body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 40rem; margin: 3rem auto; padding: 0 1rem;
color-scheme: light dark }} th {{ text-align: left; padding-right: 2rem; font-weight: normal }}</style></head>
<body><h1>hone</h1>
<p>{state}</p>
<table>{rows}</table>
<p><a href="/docs">Routes, with a form to try each</a> ·
<a href="/metrics">Metrics</a> · <a href="/v1/jobs">Jobs</a></p>
</body></html>
"""


@router.head("/livez", include_in_schema=False)  # as HTTP has it, HEAD is GET without the body: /docs names GET alone
@router.get("/livez", response_model=LiveReply, responses=errors())
async def live() -> Response:
    """Tell that the process is alive, whatever it can answer."""
    return reply({"status": "live"})


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", response_model=ReadyReply, responses=errors(503))
async def ready(snapshot: ReadyOf) -> Response:
    """Tell that a snapshot is loaded and the model computes, so that requests are answered, and will be for a while."""
    return reply({"status": "ready", "generation": snapshot.generation.number})


@router.get("/metrics", response_class=Response, responses=errors())
def metrics(service: ServiceOf) -> Response:
    """Give all metrics in Prometheus' text format."""
    return Response(service.telemetry.exposition(), media_type=CONTENT_TYPE_LATEST)


@router.get(
    "/",
    response_class=Response,  # errors are JSON, here too
    responses={200: {"content": {"text/html": {"schema": {"type": "string"}}}}, **errors()},
)
def start_page(service: ServiceOf) -> Response:
    """Show what is served and where to go from here."""
    return HTMLResponse(page(service.serving))


def page(serving: Serving) -> str:
    """Return the start page as HTML."""
    snapshot = serving.snapshot
    if snapshot is None:
        why = serving.problem or "Build a generation with “hone index”; it is served as soon as it is there."
        return PAGE.format(state="Nothing is served yet.", rows=_rows({"why": why}))
    facts = snapshot.generation.facts
    shown: dict[str, object] = {
        "generation": snapshot.generation.number,
        "training step": facts["step"],
        "passages": len(snapshot.corpus),
        "index": facts["factory"],
        "built": snapshot.generation.manifest["created"],
        **{f"dev {name}": value for name, value in (facts.get("dev") or {}).items()},
    }
    if serving.problem:
        shown["the next could not be loaded"] = serving.problem
    return PAGE.format(state="This server answers from one generation of the index.", rows=_rows(shown))


def _rows(cells: dict[str, object]) -> str:
    return "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(f'{value:.4f}' if isinstance(value, float) else str(value))}</td></tr>"
        for name, value in cells.items()
    )
