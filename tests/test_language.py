"""The language of pages, docstrings and messages: plain American English. Spelling is codespell's job."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("examples/**/*.md"), *ROOT.glob(".github/**/*.md")]
MODULES = [*ROOT.glob("segnext_timm/**/*.py"), *ROOT.glob("examples/**/*.py")]
RULES = {
    r"\blicence|\bcolour|\bgrey\b|\bbehaviour|\bnormalis|\borganis|\boptimis(?!t)|\bcentre\b": "American spelling",
    r"\b(simply|easily|obviously|of course|just)\b": "leave it out: what is simple shows itself",
    r"\b(utili[sz]e|leverage|seamless(ly)?|blazing|cutting-edge|state-of-the-art|powerful)\b": "plain words",
    r"\bin order to\b": "to",
    r"\b(e\.g\.|i\.e\.|etc\.)": "such as; that is; and others",
    r"^Of (a|an|the) [^,.]*, ": "begin with the subject",
    r"\b(go on with|goes on with)\b": "continue, resume",
    r"\b(\w+) \1\b": "a word twice",
    r"\bTODO\b|\bFIXME\b|\bXXX\b": "finish it",
    r"[!]{1,}(?=\s|$)": "no exclamation",
}


def prose(path):
    """Lines of text: of a page outside its code, of a module its docstrings."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        text = re.sub(r"`[^`\n]*`|!\[|\]\([^)]*\)", " CODE ", text)
        return [line for line in text.splitlines() if not line.startswith("|")]
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    docstrings = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)]
    lines = [line for docstring in docstrings for line in docstring.splitlines() if not line.startswith("    python ")]
    return [re.sub(r"`[^`\n]*`", " CODE ", line) for line in lines]


@pytest.mark.parametrize("path", [*PAGES, *MODULES], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_prose_is_plain(path):
    found = []
    for line in prose(path):
        for pattern, advice in RULES.items():
            for match in re.finditer(pattern, line, re.IGNORECASE):
                repeated = re.fullmatch(r"[\d\s]+|code code|that that|had had", match[0].lower())
                if not repeated:
                    found.append(f"{match[0]!r} ({advice}): {line.strip()}")
    assert not found


@pytest.mark.slow
def test_spelling():
    pytest.importorskip("codespell_lib")
    done = subprocess.run([sys.executable, "-m", "codespell_lib"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
