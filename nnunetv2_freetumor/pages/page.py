"""Building blocks of HTML pages that need no other file."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_freetumor.files.cases import replacing

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 1080px; margin: 2em auto;
       padding: 0 1em; }
h1 { font-size: 1.7em; } h2 { font-size: 1.25em; margin-top: 2.2em; border-bottom: 1px solid #ddd; }
h3 { font-size: 1.05em; margin-top: 1.8em; }
figure { margin: 1em 0; } figure img { width: 100%; height: auto; background: #101010; }
figure.small { max-width: 640px; } figcaption { font-size: .9em; color: #444; }
table { border-collapse: collapse; margin: 1em 0; } td, th { padding: .3em .9em; border-bottom: 1px solid #ddd;
        text-align: left; } td.number, th.number { text-align: right; white-space: nowrap; }
pre { background: #f4f4f4; padding: .8em 1em; overflow-x: auto; font-size: .9em; }
.note { background: #fff6e0; border-left: 4px solid #ffb000; padding: .6em 1em; }
code { font-size: .9em; } td code { word-break: break-all; } .wide { overflow-x: auto; }
"""


def save_page(title: str, parts: Sequence[str], path: Path) -> Path:
    """Write a page of HTML parts and give its path."""
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width"><title>{html.escape(title)}</title><style>{STYLE}</style></head><body>\n'
    )
    with replacing(path) as unfinished:
        unfinished.write_text(head + "\n".join(parts) + "\n</body></html>\n", encoding="utf-8")
    return path


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table of texts; all columns but the first hold numbers."""

    def line(tag: str, cells: Sequence[str]) -> str:
        first, *rest = map(html.escape, cells)
        return f"<tr><{tag}>{first}</{tag}>{''.join(f'<{tag} class=number>{cell}</{tag}>' for cell in rest)}</tr>"

    return f"<div class=wide><table>{line('th', head)}{''.join(line('td', row) for row in rows)}</table></div>"


def picture(png: bytes, caption: str, style: str = "") -> str:
    """Embed a picture; the caption is HTML."""
    data = base64.b64encode(png).decode()
    image = f"<img src='data:image/png;base64,{data}' alt=''>"
    return f"<figure class='{style}'>{image}<figcaption>{caption}</figcaption></figure>"
