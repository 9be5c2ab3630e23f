"""Fill templates of Markdown reports; make table rows and HTML pages."""

import html
from pathlib import Path

from scripts.datasets.record import DataError

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:75em;margin:2em auto;padding:0 1em;"
    "color:#222}table{border-collapse:collapse;display:block;overflow-x:auto;font-size:14px}"
    "th,td{border:1px solid #ccc;padding:.25em .6em;text-align:left}th{background:#f3f3f3}"
    "blockquote{border-left:3px solid #ccc;margin-left:0;padding-left:1em;color:#444}"
    "svg,img{max-width:100%;height:auto}"
)


def render(template: Path, **values: object) -> str:
    """Return the Jinja template filled with `values`; it may import its folder's other templates.

    It also knows `row(cell, ...)` and `head(name, ...)`, the lines of a table.

    Raises:
        jinja2.UndefinedError: the template uses a name that is not given.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(template.parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals.update(row=row, head=head)
    return environment.get_template(template.name).render(values)


def row(*cells: object) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def head(*names: object) -> str:
    """Return the head of a table, two lines."""
    return row(*names) + "\n|" + "---|" * len(names)


def put_between(file: Path, name: str, text: str) -> None:
    """Replace what is between `<!-- name -->` and `<!-- /name -->`, or raise DataError."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    whole = file.read_text(encoding="utf-8")
    if not whole.count(begin) == whole.count(end) == 1 or whole.index(begin) > whole.index(end):
        raise DataError(f"{file}: it needs the line {begin}, and the line {end} after it, once")
    before, rest = whole.split(begin)
    file.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}", encoding="utf-8")


def page(text: str, before_sections: str = "") -> str:
    """Return one HTML page of the Markdown `text`, whose first line is the title.

    Args:
        before_sections: HTML put before the first `##` heading.
    """
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    first = max(body.find("<h2>"), 0)
    return document(
        text.splitlines()[0].lstrip("# "), body[:first] + before_sections + body[first:]
    )


def document(title: str, body: str) -> str:
    """Return a whole HTML document; `body` is HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title>"
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )
