"""The pages of the API reference, one for each section of `public-api.md`, for MkDocs."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

_MODULES = ("Transforms", "Messages")
"""Sections whose names are in a module of their own."""
_PAGE = Path(__file__).parent / "public-api.md"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each section, which has the docstrings of the names in its table."""
    for section in _PAGE.read_text().split("\n## ")[1:]:
        title = section.partition("\n")[0]
        package = f"ledgerbeam.{title.lower()}" if title in _MODULES else "ledgerbeam"
        rows = re.findall(r"^\| (`\w.*?) \|", section, re.MULTILINE)
        names = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
        content = "\n\n".join([f"# {title}", *(f"::: {package}.{name}" for name in names)])
        uri = f"docs/api/{title.lower().replace(' ', '-')}.md"
        files.append(File.generated(config, uri, content=content))
    return files
