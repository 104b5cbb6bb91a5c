"""JSON documents that name their format and version, read with one-line errors."""

import json
from typing import Any


class NewerDocumentError(ValueError):
    """A document of a newer version than this code reads."""


def write_document(format_name: str, version: int, fields: dict[str, Any]) -> str:
    """The document as JSON text: the same fields always give the same text."""
    return json.dumps({"format": format_name, "version": version, **fields}, separators=(",", ":"))


def read_document(text: str, format_name: str, version: int) -> dict[str, Any]:
    """The document's fields, without its format and version.

    Raises:
        ValueError: the text is not JSON, is another format, or is of a newer version (`NewerDocumentError`).
    """
    try:
        fields = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"not a complete JSON document ({error}): write the {format_name} again") from None
    if not isinstance(fields, dict) or fields.get("format") != format_name:
        found = fields.get("format") if isinstance(fields, dict) else type(fields).__name__
        raise ValueError(
            f'this is not a {format_name} document: "format" must be {format_name!r}, got {found!r}'
        )
    found = fields.get("version")
    if type(found) is not int or found < 1:
        raise ValueError(
            f'"version" of a {format_name} must be a whole number from 1 to {version}, got {found!r}'
        )
    if found > version:
        raise NewerDocumentError(
            f"this {format_name} has version {found}, and this deepres reads up to {version}: "
            "update deepres or write the document again"
        )
    return {name: value for name, value in fields.items() if name not in ("format", "version")}


def field(fields: Any, name: str, kind: type, what: str) -> Any:
    """One field of a decoded JSON object, checked to be of `kind` (`float` admits whole numbers).

    Raises:
        ValueError: `fields` is not an object, or the field is missing or of another type.
    """
    if not isinstance(fields, dict):
        raise ValueError(f"{what} must be an object, got {fields!r:.40}")
    if name not in fields:
        raise ValueError(f'{what} lacks "{name}"')
    value = fields[name]
    kinds = (int, float) if kind is float else (kind,)
    if type(value) not in kinds:
        raise ValueError(f'"{name}" of {what} must be {kind.__name__}, got {value!r:.40}')
    return value
