"""Predicted against measured peaks, as a command."""

import pytest

import predict_vs_measure


def test_a_net_s_steps_are_within_three_percent_and_written_down(tmp_path, capsys):
    table = tmp_path / "table.md"
    assert predict_vs_measure.main(["--depths", "29", "--output", str(table)]) == 0
    lines = table.read_text(encoding="utf-8").splitlines()
    assert f"    python tools/predict_vs_measure.py --depths 29 --output {table}" in lines
    steps = [line for line in lines if line.startswith("ResNet-29 × 32")]
    assert len(steps) == 12
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "net × batch  precision  strategy  predicted  measured  off by"
    assert len(told) == 1 + 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--depths", "7"), "--depths: must be some of 29,56,110"),
        (("--device", "tpu"), "--device: must be cpu or cuda, got 'tpu'"),
        (("--output", "/nowhere/x.md"), "--output: /nowhere/x.md cannot be written"),
    ],
)
def test_a_mistake_is_told_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        predict_vs_measure.main(list(arguments))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
