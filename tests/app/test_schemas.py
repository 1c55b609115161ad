from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from app import judgement_schemas, mine_schemas, schemas
from app.mine_schemas import MineRequest
from app.routes import openai, rerank, text_embeddings
from app.schemas import Body, EncodeRequest, SearchRequest

REQUESTS: list[type[BaseModel]] = [
    EncodeRequest,
    SearchRequest,
    MineRequest,
    judgement_schemas.JudgeRequest,
    openai.EmbeddingsRequest,
    rerank.RerankRequest,
    text_embeddings.EmbedRequest,
    text_embeddings.RankRequest,
]
MODULES = [schemas, mine_schemas, judgement_schemas, openai, rerank, text_embeddings]


@pytest.mark.parametrize("request_model", REQUESTS)
def test_examples_of_the_documentation_are_valid(request_model: type[BaseModel]) -> None:
    examples = request_model.model_json_schema()["examples"]
    assert examples
    for example in examples:
        request_model.model_validate(example)


@pytest.mark.parametrize("request_model", REQUESTS)
def test_unknown_fields_are_refused_at_every_depth(request_model: type[BaseModel]) -> None:
    (example,) = request_model.model_json_schema()["examples"]
    for place in _objects(example):
        place["surprise"] = 1
        with pytest.raises(ValidationError, match="surprise"):
            request_model.model_validate(example)
        del place["surprise"]


def _objects(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, dict):
        return [value, *(found for child in value.values() for found in _objects(child))]
    return [found for child in value for found in _objects(child)] if isinstance(value, list) else []


def test_requests_are_all_of_the_strict_kind() -> None:
    named = {model for module in MODULES for name, model in vars(module).items() if "Request" in name}
    assert named == {*REQUESTS}
    for model in [*named, mine_schemas.MineQuery, schemas.Range, rerank.TextObject, judgement_schemas.Judgement]:
        assert issubclass(model, Body)
        assert (model.model_config["extra"], model.model_config["strict"]) == ("forbid", True)


def test_one_text_is_a_list_of_one() -> None:
    assert EncodeRequest.model_validate({"inputs": "a"}).inputs == ["a"]
    schema = EncodeRequest.model_json_schema()["properties"]["inputs"]
    assert {kind["type"] for kind in schema["anyOf"]} == {"string", "array"}


def test_limits_hold_to_the_last_one() -> None:
    EncodeRequest(inputs=["a"] * schemas.MAX_INPUTS)
    EncodeRequest(inputs=["a" * schemas.MAX_CHARACTERS])
    SearchRequest(queries=["a"] * 200, top_k=1000)
    with pytest.raises(ValidationError, match="201000"):
        SearchRequest(queries=["a"] * 201, top_k=1000)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (EncodeRequest, "inputs"),
        (SearchRequest, "queries"),
        (openai.EmbeddingsRequest, "input"),
        (text_embeddings.EmbedRequest, "inputs"),
        (text_embeddings.RankRequest, "texts"),
        (judgement_schemas.JudgeRequest, "judgements"),
    ],
)
def test_the_document_tells_how_many_may_come_at_once(body: type[Body], field: str) -> None:
    schema = body.model_json_schema()["properties"][field]
    (listed,) = [one for one in schema.get("anyOf", [schema]) if one.get("type") == "array"]
    assert (listed["minItems"], listed["maxItems"]) == (1, schemas.MAX_INPUTS)
