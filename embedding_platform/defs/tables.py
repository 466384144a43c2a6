"""Tables in metadata."""

from collections.abc import Iterable

import dagster as dg

_TYPES = {int: "int", float: "float"}


def table(columns: tuple[str, ...], rows: Iterable[tuple[str | int | float, ...]]) -> dg.MetadataValue:
    """Rows under named columns, whose types are those of the first row."""
    listed = list(rows)
    types = [_TYPES.get(type(value), "string") for value in listed[0]] if listed else ["string"] * len(columns)
    schema = dg.TableSchema([dg.TableColumn(name, kind) for name, kind in zip(columns, types, strict=True)])
    records = [dg.TableRecord(dict(zip(columns, row, strict=True))) for row in listed]
    return dg.MetadataValue.table(records, schema=schema)
