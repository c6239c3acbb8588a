"""Read a request's body: JSON as RFC 8259 has it, and nothing that another parser would read
otherwise.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any, TypeAlias

# `\ud83d`: half of a surrogate pair, or both halves of one.
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class BodyError(ValueError):
    """The body cannot be taken; the message says why, for the client.

    Args:
        message: sentence for the client.
        field: the field that is meant, as `messages[0].role`; None is the body as a whole.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


# A client's request as it came: nothing of it is known before `fields.py` has looked.
Body: TypeAlias = dict[str, Any]


def parse_body(raw: bytes) -> Body:
    """The JSON object of a body.

    Two parsers may read these differently, so they are refused: a name given twice, NaN and
    infinities (also `1e999`), half a surrogate pair, and any encoding but UTF-8.

    Raises:
        BodyError: it is no such object.
    """
    try:
        body = json.loads(
            raw.decode(),
            object_pairs_hook=_once,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
        if _ESCAPED_SURROGATE.search(raw):
            json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise BodyError(
            "The body has half a surrogate pair (\\ud800 to \\udfff alone), which is no character."
        ) from None
    except UnicodeDecodeError as error:
        raise BodyError(f"The body is not UTF-8 at byte {error.start}.") from None
    except RecursionError:
        raise BodyError("The body is nested too deep.") from None
    except BodyError:
        raise
    except ValueError as error:
        raise BodyError(f"The body is not JSON: {str(error)[:200]}.") from None
    if not isinstance(body, dict):
        raise BodyError("The body is not a JSON object.")
    return body


def _once(pairs: list[tuple[str, Any]]) -> Body:
    found = dict(pairs)
    if len(found) != len(pairs):
        # Not names.count(): a megabyte of names, the last one twice, would take minutes.
        twice = shown(Counter(name for name, _ in pairs).most_common(1)[0][0])
        raise BodyError(f"The body has `{twice}` twice in one object. Give each name once.", twice)
    return found


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:40]} is out of range")
    return number


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def shown(value: Any) -> str:
    """A value or a name of a client in an error message: short, and in ASCII."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = value if isinstance(value, str) else json.dumps(value)
    return ascii(text[:60])[1:-1] + ("…" if len(text) > 60 else "")
