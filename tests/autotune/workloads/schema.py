"""As much of JSON Schema as the schema of plans uses."""

from __future__ import annotations

from typing import Any

TYPES: dict[str, Any] = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}
NOTES = {"$schema", "$defs", "title", "description", "examples"}


def accepts(schema: dict[str, Any], value: Any, root: dict[str, Any] | None = None) -> bool:
    """Whether ``value`` is valid. Raises AssertionError for a keyword that is not known here."""
    root = root or schema
    return all(_holds(keyword, wanted, value, schema, root) for keyword, wanted in schema.items())


def _holds(keyword: str, wanted: Any, value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    if keyword in NOTES:
        return True
    if keyword == "$ref":
        return accepts(root["$defs"][wanted.removeprefix("#/$defs/")], value, root)
    if keyword == "type":
        return isinstance(value, TYPES[wanted]) and (wanted == "boolean" or not isinstance(value, bool))
    if keyword in ("const", "enum"):
        return any(value == item and type(value) is type(item) for item in (wanted if keyword == "enum" else [wanted]))
    if keyword in ("oneOf", "anyOf"):
        matching = sum(accepts(choice, value, root) for choice in wanted)
        return matching == 1 if keyword == "oneOf" else matching >= 1
    if keyword in ("minimum", "minLength", "minItems"):
        kind = {"minimum": int, "minLength": str, "minItems": list}[keyword]
        return not isinstance(value, kind) or (value if keyword == "minimum" else len(value)) >= wanted  # type: ignore
    if keyword == "items":
        return not isinstance(value, list) or all(accepts(wanted, item, root) for item in value)
    assert keyword in ("properties", "additionalProperties", "required"), keyword
    if not isinstance(value, dict):
        return True
    if keyword == "required":
        return set(wanted) <= set(value)
    if keyword == "additionalProperties":
        assert wanted is False
        return set(value) <= set(schema["properties"])
    return all(accepts(part, value[name], root) for name, part in wanted.items() if name in value)
