"""The schema of manifest and parity report is frozen: what bundles out there look like.

After a change that is meant: raise SCHEMA_VERSION if old bundles cannot be read any more, and write the
snapshot again with `python -m tests.runtime.test_schema`.
"""

import json
from pathlib import Path

import msgspec
from latentc.schema import SCHEMA_VERSION, Manifest, Parity

SNAPSHOT = Path(__file__).with_name("manifest.schema.json")


def current() -> str:
    schemas = {
        "schema_version": SCHEMA_VERSION,
        "manifest": msgspec.json.schema(Manifest),
        "parity": msgspec.json.schema(Parity),
    }
    return json.dumps(schemas, indent=1, sort_keys=True) + "\n"


def test_schema_is_frozen() -> None:
    assert current() == SNAPSHOT.read_text(encoding="utf-8")


def test_every_type_is_closed() -> None:
    for name in ("manifest", "parity"):
        for title, definition in json.loads(current())[name]["$defs"].items():
            assert definition["additionalProperties"] is False, title


if __name__ == "__main__":
    SNAPSHOT.write_text(current(), encoding="utf-8")
