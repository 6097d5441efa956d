import json
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("prove.py")


def test_a_dry_run_on_a_cpu_passes_all_checks_and_measures_every_section(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    monkeypatch.setattr(sys, "argv", ["prove.py", "--device", "cpu", "--small", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    rows = [json.loads(line) for line in (tmp_path / "prove.jsonl").read_text(encoding="utf-8").splitlines()]
    assert list(dict.fromkeys(row["section"] for row in rows)) == ["machine", "checks", "steps", "inference", "loader"]
    assert all(row["holds"] for row in rows if row["section"] == "checks")
    assert not [row for row in rows if "error" in row or row.get("note") == "no time was left"]
    page = (tmp_path / "prove.md").read_text(encoding="utf-8")
    assert all(row["what"] in page for row in rows)
