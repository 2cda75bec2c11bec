"""Values → a whole HTML page, by a template of this folder."""

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from engine.pages.text import percent
from engine.picture import data_uri

_FOLDER = Path(__file__).parent


def render(template: str, **values: object) -> bytes:
    """The page that `template`, for example `training.html.j2`, makes of `values`, as UTF-8.

    Each value is text, and is escaped, unless it is `Markup`. The templates' filters are `percent`
    and `picture`: pixels become the `src` of an image.
    """
    # Names of files need not be Unicode.
    return _environment().get_template(template).render(values).encode(errors="backslashreplace")


def plain_page(title: str, body: str) -> bytes:
    """A page of `body`, which is HTML already; `title` is text."""
    return render("base.html.j2", title=title, content=Markup(body))  # noqa: S704 - as documented


def colours() -> str:
    """CSS: the names of all colours, for light and dark."""
    return (_FOLDER / "colours.css").read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    found = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FileSystemLoader(_FOLDER),
    )
    found.filters |= {"percent": percent, "picture": data_uri}
    return found
