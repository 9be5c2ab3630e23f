"""Turn Markdown with pictures into one HTML file that needs no other."""

import base64
import html
from collections.abc import Mapping

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:75em;margin:2em auto;padding:0 1em;"
    "color:#222}table{border-collapse:collapse;display:block;overflow-x:auto;font-size:14px}"
    "th,td{border:1px solid #ccc;padding:.25em .6em;text-align:left}th{background:#f3f3f3}"
    "img{max-width:100%;height:auto}"
)


def page(markdown: str, pictures: Mapping[str, bytes]) -> str:
    """Return the page as HTML.

    Args:
        pictures: name in the Markdown -> PNG.
    """
    from markdown_it import MarkdownIt

    for name, content in pictures.items():
        data = base64.b64encode(content).decode("ascii")
        markdown = markdown.replace(f"]({name})", f"](data:image/png;base64,{data})")
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    title = html.escape(markdown.splitlines()[0].lstrip("# "))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )
