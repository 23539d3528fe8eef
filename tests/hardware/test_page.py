"""What the README shows of recorded machines is what the program says of them now."""

from pathlib import Path

from scripts.readme import machines

ROOT = Path(__file__).resolve().parents[2]
AGAIN = "python scripts/readme/machines.py"


def test_the_page_is_fresh() -> None:
    assert machines.PAGE.read_text() == machines.page(), f"{AGAIN} --write writes it anew"


def test_the_table_in_the_readme_is_fresh() -> None:
    said = (ROOT / "README.md").read_text()
    missing = [line for line in machines.table() if line not in said]
    assert not missing, f"{AGAIN} prints it"
