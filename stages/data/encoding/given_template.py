"""The chat template of `data.chat_template`: a file that goes wherever the tuning goes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from stages.errors import InputError, SettingError

TEMPLATE_FILE = "chat_template.jinja"
"""Its name in a prepared directory, in an adapter's and, as transformers has it, in a model's."""


def read_given(path: str | None) -> str | None:
    """Return the template in the file that `data.chat_template` names, if it names one.

    Raises SettingError where that cannot be read or holds nothing.
    """
    if path is None:
        return None
    mend = "name a file with a Jinja template, or leave it out for the tokenizer's own"
    try:
        template = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except OSError as error:
        found = f"{path} cannot be read: {str(error.strerror or error).lower()}"
        raise SettingError("data.chat_template", found, mend) from error
    except UnicodeDecodeError as error:
        found = f"{path} is not UTF-8, at byte {error.start}"
        raise SettingError("data.chat_template", found, "save it as UTF-8") from error
    if not template.strip():
        raise SettingError("data.chat_template", f"{path} is empty", mend)
    return template


def given_template(directory: Path) -> str | None:
    """Return the chat template that lies in `directory`; None stands for the tokenizer's own.

    Raises InputError where it cannot be read.
    """
    path = directory / TEMPLATE_FILE
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        found = f"cannot be read ({type(error).__name__})"
        raise InputError(str(path), found, "prepare the data again") from error


def write_template(directory: Path, template: str) -> None:
    """Write the template into `directory`, byte by byte as it was read."""
    (directory / TEMPLATE_FILE).write_bytes(template.encode())


def replace_template(directory: Path, template: str) -> None:
    """Make it the chat template of the model in `directory`, for transformers and mlx-lm alike."""
    write_template(directory, template)
    path = directory / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    # Both would name another: transformers' older place for it, and one of mlx-lm's own.
    others = {"chat_template", "chat_template_type"} & settings.keys()
    if others:
        kept = {key: value for key, value in settings.items() if key not in others}
        text = json.dumps(kept, indent=2, ensure_ascii=False) + "\n"
        path.write_text(text, encoding="utf-8", newline="\n")


def template_digest(template: str) -> str:
    """Return the SHA-256 of the template's text, in hexadecimal."""
    return hashlib.sha256(template.encode()).hexdigest()
