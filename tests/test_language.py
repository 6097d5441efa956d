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
    r"^(?-i:Of) (a|an|the) [^,.]*, ": "begin with the subject",
    r"\b(go on with|goes on with)\b": "continue, resume",
    r"\b(\w+) \1\b": "a word twice",
    r"\bTODO\b|\bFIXME\b|\bXXX\b": "finish it",
    r"[!]{1,}(?=\s|$)": "no exclamation",
}


def flaws(path, lines):
    """What breaks a rule in lines of prose, each with its file and the advice; code in backticks is left out."""
    found = []
    for line in lines:
        line = re.sub(r"`[^`\n]*`", " CODE ", line)
        for pattern, advice in RULES.items():
            for match in re.finditer(pattern, line, re.IGNORECASE):
                if not re.fullmatch(r"[\d\s]+|code code|that that|had had", match[0].lower()):
                    found.append(f"{path.relative_to(ROOT)}: {match[0]!r} ({advice}): {line.strip()}")
    return found


def trees():
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}


def test_pages_are_plain():
    found = []
    for path in PAGES:
        text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        text = re.sub(r"`[^`\n]*`|!\[|\]\([^)]*\)", " CODE ", text)
        found += flaws(path, [line for line in text.splitlines() if not line.startswith("|")])
    assert not found, "\n".join(found)


def test_docstrings_are_plain():
    found = []
    for path, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                lines = (ast.get_docstring(node) or "").splitlines()
                found += flaws(path, [line for line in lines if not line.startswith("    python ")])
    assert not found, "\n".join(found)


def test_messages_of_errors_are_plain():
    found = []
    for path, tree in trees().items():
        for node in (node for raised in ast.walk(tree) if isinstance(raised, ast.Raise) for node in ast.walk(raised)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found += flaws(path, [node.value])
    assert not found, "\n".join(found)


@pytest.mark.slow
def test_spelling():
    pytest.importorskip("codespell_lib")
    done = subprocess.run([sys.executable, "-m", "codespell_lib"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
