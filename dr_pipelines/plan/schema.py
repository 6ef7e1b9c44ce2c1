"""The plan's JSON Schema, for editors and for what a refusal says is expected."""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from dr_pipelines.plan.models import PlanDocument

__all__ = ["fields_at", "write_json_schema"]


class _PlanSchema(GenerateJsonSchema):
    # A key without a value is refused, so null is not offered; titles made from the field's name say nothing.
    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False


@cache
def _schema() -> Mapping[str, Any]:
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **PlanDocument.model_json_schema(schema_generator=_PlanSchema),
        "title": "Recovery plan",
    }


def write_json_schema() -> str:
    """The JSON Schema of a recovery plan, as the text of `recovery-plan.schema.json`."""
    return json.dumps(_schema(), indent=2, ensure_ascii=False) + "\n"


def fields_at(loc: tuple[str | int, ...]) -> Mapping[str, str]:
    """The keys that the mapping at `loc` may have, each with what is expected there; none where it is no mapping."""
    schema = _schema()
    here: Mapping[str, Any] = schema
    for part in loc:
        here = here.get("items", {}) if isinstance(part, int) else here.get("properties", {}).get(part, {})
        if "$ref" in here:
            here = schema["$defs"][here["$ref"].rpartition("/")[2]]
    return {name: field.get("description", "") for name, field in here.get("properties", {}).items()}
