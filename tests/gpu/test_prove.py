import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("prove.py")


def test_a_dry_run_on_a_cpu_passes_all_checks_and_measures_every_section(tmp_path):
    command = [sys.executable, SCRIPT, "--device", "cpu", "--small", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (tmp_path / "prove.jsonl").read_text(encoding="utf-8").splitlines()]
    assert list(dict.fromkeys(row["section"] for row in rows)) == ["machine", "checks", "steps", "inference", "loader"]
    assert all(row["holds"] for row in rows if row["section"] == "checks")
    assert not [row for row in rows if "error" in row or row.get("note") == "no time was left"]
    page = (tmp_path / "prove.md").read_text(encoding="utf-8")
    assert all(row["what"] in page for row in rows)
