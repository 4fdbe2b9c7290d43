"""A page of prose with written sections: what lies between two marks is replaced, all else is kept as it is."""

import re
from pathlib import Path


def with_section(page: str, name: str, writer: str, text: str) -> str:
    """The page with section `name` written anew; ValueError where its marks are not there exactly once."""
    begin, end = f"<!-- {name}: written by {writer} -->", f"<!-- end of {name} -->"
    page, count = re.subn(
        f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: f"{begin}\n{text}\n{end}", page, flags=re.S
    )
    if count != 1:
        raise ValueError(f"the page has {count} places for {name}, and needs one")
    return page


def replace_file(path: Path, text: str) -> None:
    """By rename."""
    staged = path.with_name(f".{path.name}")
    staged.write_text(text, encoding="utf-8")
    staged.replace(path)
