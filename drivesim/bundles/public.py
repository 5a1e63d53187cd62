"""Records without what is of nobody's interest but the machine's they were made on: where its folders are."""

import re
import shlex
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit

_LOCAL = re.compile(r"(?:~|\.{0,2})/|[A-Za-z]:[\\/]")  # /a, ~/a, ./a, ../a, C:\a


def public(value: Any) -> Any:
    """A copy of JSON in which folders of this machine are names alone, and URLs have neither password nor query."""
    if isinstance(value, dict):
        return {key: public_command(item) if key == "command" else public(item) for key, item in value.items()}
    if isinstance(value, list):
        return [public(item) for item in value]
    return _text(value) if isinstance(value, str) else value


def public_command(command: Any) -> str:
    """A command line, of words of which some are key=value; empty for what is none."""
    if not isinstance(command, str):
        return ""
    try:
        words = [word.partition("=") for word in shlex.split(command)]
    except ValueError:  # a quote that is not closed
        return ""
    return shlex.join(key + equals + _text(value) if equals else _text(key) for key, equals, value in words)


def _text(text: str) -> str:
    if re.match(r"[a-z][a-z0-9+]*://", text):
        parts = urlsplit(text)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    if _LOCAL.match(text):
        return (PureWindowsPath(text) if "\\" in text else PurePosixPath(text)).name
    return text
