"""Copies the files of examples/extending into docs/extending.md, where they are shown.

python tools/extending_page.py
"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples" / "extending"
PAGE = ROOT / "docs" / "extending.md"


def shown(block: re.Match[str]) -> str:
    """The block with the present text of its file, which its first lines tell apart."""
    language, text = block.groups()
    if language == "toml":
        return f"```toml\n{(EXAMPLES / 'pyproject.toml').read_text()}```"
    for path in EXAMPLES.glob("*.py"):
        written = path.read_text()
        if text.strip() == path.name or text.splitlines()[0] == written.splitlines()[0]:
            return f"```python\n{written}```"
    raise SystemExit(f"no file in {EXAMPLES} begins with: {text.splitlines()[0]}")


PAGE.write_text(re.sub(r"```(toml|python)\n(.*?)```", shown, PAGE.read_text(), flags=re.DOTALL))
