import pytest

from deepres.config.strict_yaml import YamlError, parse_value, read_yaml


def _read(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return read_yaml(path)


def test_content_comes_with_the_line_of_each_key(tmp_path):
    content, lines = _read(tmp_path, "# a run\nmodel:\n  depth: 29\ndata: {name: digits}\n")
    assert content == {"model": {"depth": 29}, "data": {"name": "digits"}}
    assert lines == {("model",): 2, ("model", "depth"): 3, ("data",): 4, ("data", "name"): 4}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: {c: 1\nd: 2\n", r"run.yaml:3: not valid YAML"),
        ("a: 1\n\tb: 2\n", r"run.yaml:2: not valid YAML"),
        ("a: 1\nb: 2\na: 3\n", r"run.yaml:3: duplicate key 'a'"),
        ("a:\n  b: 1\n  b: 2\n", r"run.yaml:3: duplicate key 'a.b'"),
        ("a: 1\n? [b, c]\n: 2\n", r"run.yaml:2: a key must be text, such as `model`, got a list"),
        ("a:\n  ? {b: 1}\n  : 2\n", r"run.yaml:2: a key must be text, such as `model`, got a mapping"),
        ("a: &x [1, *x]\n", r"run.yaml:1: not valid YAML: an alias \(`\*name`\); write its value out"),
        ("a: &x [1]\nb: *x\n", r"run.yaml:2: not valid YAML: an alias"),
        ("- 1\n- 2\n", r"run.yaml:1: expected sections .* got a list"),
        ("a: 2024-13-45\n", r"run.yaml: not valid YAML: month must be in 1..12"),
        ("a: !!int abc\n", r"run.yaml: not valid YAML: invalid literal"),
        ("a: !!bool abc\n", r"run.yaml: not valid YAML: 'abc'"),
        ("a: " + 5000 * "[" + "\n", r"run.yaml: not valid YAML: "),
        ("just text\n", r"run.yaml:1: expected sections .* got a str"),
    ],
)
def test_what_is_no_plain_mapping_is_refused_with_its_line(tmp_path, text, message):
    with pytest.raises(YamlError, match=message):
        _read(tmp_path, text)


def test_an_object_is_refused_and_nothing_runs(tmp_path):
    canary = tmp_path / "canary"
    with pytest.raises(YamlError, match=r"run.yaml:1: not valid YAML"):
        _read(tmp_path, f"a: !!python/object/apply:os.system ['touch {canary}']\n")
    assert not canary.exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(YamlError, match=r"none.yaml: cannot be read: No such file"):
        read_yaml(tmp_path / "none.yaml")


def test_a_value_that_is_no_yaml_is_refused():
    assert parse_value("[1, 2]") == [1, 2]
    with pytest.raises(YamlError, match="is not a YAML value"):
        parse_value("[1, 2")
    with pytest.raises(YamlError, match="is not a YAML value"):
        parse_value("&a [*a]")
