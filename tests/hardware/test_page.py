"""What is shown of recorded machines is what the program says of them now."""

from scripts.readme import machines


def test_the_page_is_fresh() -> None:
    assert machines.PAGE.read_text() == machines.page(), "python scripts/readme/machines.py writes it anew"
