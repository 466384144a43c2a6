"""Filter expressions, made of fields and values so that no value can become syntax.

Templates with parameters are no way: Milvus Lite 3.2 and Milvus 2.3 know none. The type is
another than `str`, so that mypy refuses a filter that was pasted together elsewhere.
"""

import math
import re
from collections.abc import Iterable
from typing import Literal, NewType, TypeAlias

from embedding_platform.errors import PlatformError

Expression = NewType("Expression", str)
"""A condition on a row, as Milvus reads it."""

Scalar: TypeAlias = str | int | float | bool
"""A value that a field or an attribute may be compared with."""

Operator: TypeAlias = Literal["==", "!=", "<", "<=", ">", ">="]

EVERYTHING = Expression("")
"""What every row meets."""

_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r", "\t": r"\t"})
"""The escapes that Milvus Lite and a server both read. It knows no others, so that other
control characters stand for themselves."""

_GREATEST_INTEGER = 2**63 - 1


def compare(field: str, operator: Operator, value: Scalar) -> Expression:
    """Rows whose field, or `attribute`, compares so with the value.

    Raises:
        PlatformError: for a value that Milvus cannot hold.
    """
    return Expression(f"{field} {operator} {_literal(value)}")


def one_of(field: str, values: Iterable[str]) -> Expression:
    """Rows whose field is one of the values; of none there are no such rows."""
    return Expression(f"{field} in [{', '.join(map(_literal, values))}]")


def begins_with(field: str, prefix: str) -> Expression:
    """Rows whose field begins with `prefix`, letter by letter.

    As a range, since `like` has characters that stand for others, and no way to escape them in
    Milvus Lite. Milvus orders strings by their bytes in UTF-8, which is the order of code points.
    """
    above = _next(prefix)
    return all_of(compare(field, ">=", prefix), *([compare(field, "<", above)] if above else []))


def attribute(name: str) -> str:
    """A field of a row's attributes, to be compared.

    Raises:
        PlatformError: for a name that is not letters, digits and underscores.
    """
    if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
        raise PlatformError(
            f"{name!r} is the name of no attribute; one is letters, digits and underscores, such as duration_seconds"
        )
    return f'attributes["{name}"]'


def all_of(*conditions: Expression) -> Expression:
    """Rows that meet all conditions."""
    return Expression(" and ".join(condition for condition in conditions if condition))


def none_of(field: str, values: Iterable[str]) -> Expression:
    """Rows whose field is none of the values."""
    return Expression(f"not ({one_of(field, values)})")


def _literal(value: Scalar) -> str:
    """A value as Milvus reads it.

    Raises:
        PlatformError: for a number beyond 64 bits, and for text that is no Unicode.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise PlatformError(f"{value!r} holds half a character, which no row can; correct it") from None
        return f'"{value.translate(_ESCAPES)}"'
    if isinstance(value, int) and abs(value) <= _GREATEST_INTEGER:
        return f"{int(value)}"
    if isinstance(value, float) and math.isfinite(value):
        return f"{float(value)!r}"
    raise PlatformError(f"{value!r} is no value that Milvus compares with; give text, a number, or true or false")


def _next(prefix: str) -> str:
    """The least string above all that begin with `prefix`; "" where there is none."""
    kept = prefix.rstrip("\U0010ffff")
    if not kept:
        return ""
    following = ord(kept[-1]) + 1
    # Between U+D7FF and U+E000 lie halves of characters, which no text holds.
    return kept[:-1] + chr(0xE000 if following == 0xD800 else following)
