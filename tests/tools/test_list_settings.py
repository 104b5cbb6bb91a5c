"""The page of all settings."""

import subprocess
import sys
from pathlib import Path

from deepres.config import Config

ROOT = Path(__file__).parents[2]


def test_the_page_of_settings_has_them_all_as_they_are_now():
    command = [sys.executable, "tools/list_settings.py"]
    page = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert page == (ROOT / "docs/settings.md").read_text(encoding="utf-8"), "run tools/list_settings.py again"
    for name, field in Config.model_fields.items():
        for key, setting in field.annotation.model_fields.items():
            (line,) = [line for line in page.splitlines() if line.startswith(f"| `{name}.{key}` | ")]
            assert setting.description.split()[0] in line
