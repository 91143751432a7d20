"""What the OpenAPI document says in English, for schemathesis, which reads what JSON Schema says.

tests/it/openapi.rs names it in SCHEMATHESIS_HOOKS. Each rule here has its sentence in a description of the document.
"""

import json
import re

import schemathesis

# Requests by their Idempotency-Key: another request under a known key is a 422, as it is meant to be.
known = {}


@schemathesis.serializer("application/x-ndjson")
def ndjson(context, lines):
    """A JSON text for each line. What is no array has no lines."""
    if not isinstance(lines, list):
        return b""
    return "\n".join(json.dumps(line) for line in lines).encode()


def has_keys(body, field):
    """Whether the key of each record of a body can be taken from this field."""
    records = body if isinstance(body, list) else [body]
    return all(isinstance(record, dict) and not isinstance(record.get(field), (dict, list)) for record in records)


@schemathesis.hook
def before_call(context, case, kwargs):
    headers, query = case.headers, case.query
    # The key is given once.
    if "tidegate-key" in headers:
        query.pop("key", None)
        query.pop("key_field", None)
    if "key" in query:
        query.pop("key_field", None)
    field = query.get("key_field")
    if isinstance(field, str) and not has_keys(case.body, field):
        del query["key_field"]
    # Where the request gives none, this source takes its key from the field "id".
    if case.path == "/named" and not has_keys(case.body, "id"):
        headers.setdefault("tidegate-key", "k")
    # It goes with wait only; and Kafka is away: who waits does so for as long as is said.
    if "wait" not in query:
        query.pop("timeout", None)
    elif re.fullmatch("[0-9]+m?s", str(query.get("timeout", "10s"))):
        query["timeout"] = "10ms"
    if "Idempotency-Key" in headers:
        # Bare or quoted it is the same.
        key = headers["Idempotency-Key"].strip('"')
        request = repr((case.formatted_path, query, headers, case.media_type, case.body))
        if known.setdefault(key, request) != request:
            del headers["Idempotency-Key"]
