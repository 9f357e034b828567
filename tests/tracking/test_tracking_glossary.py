from __future__ import annotations

from dsob_pl.tracking import GLOSSARY, glossary_table, unknown_metrics


def test_the_table_has_a_row_for_every_metric() -> None:
    lines = glossary_table().splitlines()
    assert lines[:2] == ["| metric | meaning |", "|---|---|"]
    assert [line.split("`")[1] for line in lines[2:]] == list(GLOSSARY)
    assert all(line.count("|") == 3 for line in lines[2:])


def test_names_are_grouped_and_meanings_are_one_line() -> None:
    for name, meaning in GLOSSARY.items():
        assert name.count("/") == 1
        assert "\n" not in meaning
        assert meaning
        assert not meaning.endswith(".")


def test_unknown_names_come_with_the_nearest_one() -> None:
    assert unknown_metrics(GLOSSARY) == []
    assert unknown_metrics(["critic/los"]) == ["'critic/los' is not in the glossary; did you mean 'critic/loss'?"]
