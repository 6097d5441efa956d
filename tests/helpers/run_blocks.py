"""Run the code blocks of a Markdown page in order, in the current folder: `python run_blocks.py PAGE.md`.

Blocks of `bash` run in bash, those of `bash fails` have to fail, those of `python` share one namespace. Blocks after
a comment `<!-- needs: ... -->` are not run. Commands that install packages are left out, and so is the README's first
command up to its script. Trainings are shortened: numbers of iterations are at most those of SHORTENED. A block of
`python` that begins with `# NAME.py` is that file too.
"""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SHORTENED = {"--iterations": 6, "--warmup": 2, "--eval_every": 3}
QUICKSTART = "python examples/quickstart.py"
FRESH = re.compile(rf"^python3 -m venv .*/(?={QUICKSTART})")
INSTALLS = re.compile(r"^(pip install|python3 -m venv|source )")


@dataclass
class Block:
    """A block: its language with options, what it needs that a test has not, its text, and its line."""

    language: str
    needs: str | None
    text: str
    line: int

    def commands(self) -> list[str]:
        """Lines of a bash block without comments and installations; continued lines are joined."""
        lines = self.text.replace("\\\n", " ").splitlines()
        lines = [FRESH.sub("", re.sub(r"(^|\s+)#.*", "", line).strip()) for line in lines]
        return [line for line in lines if line and not INSTALLS.match(line)]

    def shortened(self) -> str:
        """The commands of a bash block, with trainings of a few iterations."""
        text = "\n".join(self.commands()).replace(QUICKSTART, f"{QUICKSTART} --steps {SHORTENED['--iterations']}")
        pattern = rf"({'|'.join(SHORTENED)}) (\d+)"
        return re.sub(pattern, lambda found: f"{found[1]} {min(int(found[2]), SHORTENED[found[1]])}", text)


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    pattern = r"^(?:<!-- needs: ([^\n]*) -->\n)?```(\w[\w ]*)\n(.*?)^```"
    found = re.finditer(pattern, text, re.DOTALL | re.MULTILINE)
    return [Block(match[2], match[1], match[3], text[: match.start()].count("\n") + 1) for match in found]


def main(page: Path) -> None:
    namespace: dict = {"__name__": "__main__"}
    for block in blocks(page):
        where = f"{page.name}, line {block.line}"
        if block.needs or block.language not in ("bash", "bash fails", "python"):
            continue
        print(f"--- {where}", flush=True)
        if block.language == "python":
            if name := re.match(r"# (\w+\.py)\n", block.text):
                Path(name[1]).write_text(block.text, encoding="utf-8")
            exec(compile(block.text, where, "exec"), namespace)
            continue
        done = subprocess.run(["bash", "-ec", block.shortened()], check=False)
        if (done.returncode != 0) != (block.language == "bash fails"):
            sys.exit(f"{where}: exit status {done.returncode}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
