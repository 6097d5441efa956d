"""Generate the API reference, `examples/api.md`, from the docstrings of the public names.

python tests/measure/api_reference.py
"""

import re
import sys
from pathlib import Path

import griffe
from griffe2md import default_config, render_object_docs

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "examples" / "api.md"
CONFIG = default_config | {
    "docstring_style": "google",
    "heading_level": 2,
    "line_length": 110,
    "show_bases": False,
    "show_docstring_attributes": False,
    "show_docstring_classes": False,
    "show_docstring_functions": False,
    "show_signature_annotations": True,
    "show_root_full_path": False,
    "summary": False,
    "filters": ["!^_", "^__init__$"],
}
OPTIONS = {"returns_multiple_items": False}
LINK, LINKED = r"\[([^\]]*)\]\(#[^)]*\)", r"\1"
HEAD = """# API reference

The public names of `segnext_timm`, generated from their docstrings by `python tests/measure/api_reference.py`. After
`import segnext_timm`, `timm.create_model("mscan_t")` and `smp.create_model("segnext", "tu-mscan_t")` work too. The
command describes itself: `segnext-timm --help`.

"""


def public_names() -> list[str]:
    """Names that the package exports, in alphabetical order."""
    sys.path.insert(0, str(ROOT))
    import segnext_timm

    return sorted(name for name in segnext_timm.__all__ if not name.startswith("__"))


def plain(text: str) -> str:
    """Remove links to names that have no heading here, and turn roles of reStructuredText into code."""
    text = re.sub(r":(?:func|class|meth|mod|attr):`~?([^`]+)`", r"`\1`", text)
    text = re.sub(r"<code>(.*?)</code>", lambda found: f"`{re.sub(LINK, LINKED, found[1])}`", text)
    text = re.sub(r"^### `[\w.]+\.(\w+\.\w+)`", r"### `\1`", text, flags=re.MULTILINE)
    text = re.sub(r"^\.\. seealso:: *", "See ", text, flags=re.MULTILINE)
    text = re.sub(r"Callable\.\.\., \[(\w+)\]", r"Callable[..., \1]", text)  # as griffe2md writes it
    return re.sub(r"\n{3,}", "\n\n", text)


def page() -> str:
    """The page in Markdown."""
    package = griffe.load(
        "segnext_timm", search_paths=[str(ROOT)], docstring_parser="google", docstring_options=OPTIONS
    )
    parts = []
    for name in public_names():
        item = package[name]
        item = item.final_target if item.is_alias else item  # where it is defined
        for member in [m for m in item.members.values() if m.is_attribute and not m.docstring]:
            item.del_member(member.name)
        if item.is_class or item.is_function:
            parts.append(render_object_docs(item, CONFIG))
    return HEAD + plain("\n".join(parts)).strip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE.relative_to(ROOT))
