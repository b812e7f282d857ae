"""Configuration: file, overrides, types, ranges, and that every key is read by some code."""

import ast
import pathlib
import re

import pytest

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import defaults, errors, overrides

ROOT = pathlib.Path(__file__).resolve().parents[1]


def _write(folder: pathlib.Path, body: str) -> str:
    path = folder / "c.py"
    path.write_text(
        "from dvsnas_jax.core import config as config_lib\n"
        f"def get_config():\n    config = config_lib.defaults()\n{body}\n    return config\n"
    )
    return str(path)


def test_load_without_anything_gives_the_defaults():
    assert config_lib.differences(config_lib.load(None, {}), config_lib.defaults()) == []


@pytest.mark.parametrize(
    "key, text, value",
    [
        ("search.steps", "200", 200),
        ("search.learning_rate", "1e-3", 0.001),
        ("search.learning_rate", "1", 1.0),
        ("data.flip", "False", False),
        ("data.dir", "/a b/c", "/a b/c"),
        ("data.scale", "1,2", (1.0, 2.0)),
        ("data.scale", "(0.5, 2)", (0.5, 2.0)),
        ("evaluate.vc_frames", "4", (4,)),
        ("space.operations", "skip,none", ("skip", "none")),
        ("space.operations", "('skip', 'conv_1x1')", ("skip", "conv_1x1")),
        ("space.operations", "()", ()),
    ],
)
def test_override_has_the_type_of_the_default(key, text, value):
    got = dict(overrides.leaves(config_lib.load(None, {key: text})))[key]
    assert got == value
    assert type(got) is type(value)
    if isinstance(value, tuple):
        assert [type(item) for item in got] == [type(item) for item in value]


@pytest.mark.parametrize(
    "key, text, message",
    [
        ("search.stepss", "3", "'search.stepss', did you mean 'search.steps'"),
        ("width", "3", "did you mean 'data.width'"),
        ("serch.steps", "3", "did you mean"),
        ("search", "3", "is a section"),
        ("search.steps", "3.5", "--config.search.steps: needs an int .* got '3.5'"),
        ("search.steps", "many", "needs an int .* got 'many'"),
        ("data.flip", "1", "needs a bool"),
        ("data.degrade", "nan", "needs a float"),
        ("data.scale", "a,b", "needs a tuple of float"),
        ("data.scale", "__import__('os').getcwd(),2", "needs a tuple of float"),
        ("evaluate.vc_frames", "8,1.5", "needs a tuple of int"),
        ("search.steps", "0", "'search.steps': must be above 0, got 0"),
        ("data.num_frames", "-1", "above 0"),
        ("search.meta_val_fraction", "1.0", "between 0 and 1"),
        ("train.polyak", "1.0", "below 1"),
        ("search.strategy", "pp", "one of ppo, reinforce, evolution, gumbel, predictor, random"),
        ("data.loader", "torch", "one of auto, tf, numpy"),
        ("net.dtype", "float16", "one of float32, bfloat16"),
        ("data.scale", "2,1", "smallest, largest"),
        ("data.scale", "1,2,3", "two numbers"),
        ("search.weight_decay", "-1e-5", "at least 0"),
        ("derive.num_retrain", "100", "at most"),
    ],
)
def test_bad_override_is_told_in_one_line(key, text, message):
    with pytest.raises(errors.UserError, match=message) as caught:
        config_lib.load(None, {key: text})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", defaults.choices())
def test_a_default_is_one_of_the_allowed_values_which_stand_where_they_are_implemented(key, monkeypatch):
    allowed = config_lib.allowed_values(key)
    assert defaults.choices()[key].default in allowed
    message = f"config key '{key}': must be one of {', '.join(map(str, allowed))}, got"
    wrong = 7 if isinstance(defaults.choices()[key].default, int) else "toy"
    with pytest.raises(errors.UserError, match=re.escape(message)):
        config_lib.load(None, {key: str(wrong)})
    if isinstance(allowed, dict):  # a table: a member that is added at run time is allowed
        monkeypatch.setitem(allowed, "toy", None)
        assert dict(overrides.leaves(config_lib.load(None, {key: "toy"})))[key] == "toy"


def test_file_changes_keys_and_an_override_wins(tmp_path):
    path = _write(tmp_path, "    config.search.steps = 7\n    config.data.degrade = 2\n    config.data.scale = [1, 2]")
    config = config_lib.load(path, {"search.steps": "9"})
    assert config_lib.differences(config, config_lib.defaults()) == ["data.degrade", "data.scale", "search.steps"]
    assert (config.search.steps, config.data.degrade, config.data.scale) == (9, 2.0, (1.0, 2.0))
    assert isinstance(config.data.degrade, float)


@pytest.mark.parametrize(
    "body, message",
    [
        ("    config.search.stepss = 3", "unknown config key 'search.stepss', did you mean 'search.steps'"),
        ("    config.mine = {'a': 1}", "unknown config key 'mine.a'"),
        ("    config.search.steps = 'many'", r"c.py, line 4: .*"),
        ("    with config.ignore_type():\n        config.search.steps = 2.5", "search.steps: needs an int .* got 2.5"),
        ("    config.data.scale = (1, 'a')", "data.scale: needs a tuple of float"),
        ("    config.search = 3", "'search' is a section|line 4"),
        ("    config.search.steps = 1 / 0", "c.py, line 4: ZeroDivisionError: division by zero"),
        ("    config.search.steps = = 1", "c.py, line 4: syntax error"),
        ("    import not_there_at_all", "c.py, line 4: ModuleNotFoundError"),
        ("    config = 3", "must return a ConfigDict"),
    ],
)
def test_bad_file_is_told_with_its_place(tmp_path, body, message):
    with pytest.raises(errors.UserError, match=message) as caught:
        config_lib.load(_write(tmp_path, body), {})
    assert "c.py" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_file_without_get_config(tmp_path):
    with pytest.raises(errors.UserError, match="no such file: .*nothing.py"):
        config_lib.load(str(tmp_path / "nothing.py"), {})
    (tmp_path / "c.py").write_text("x = 1\n")
    with pytest.raises(errors.UserError, match=r"defines no function get_config\(\)"):
        config_lib.load(str(tmp_path / "c.py"), {})


def test_name_of_a_config_in_the_folder_configs(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    _write(tmp_path / "configs", "    config.search.steps = 7")
    monkeypatch.chdir(tmp_path)
    assert config_lib.load("c", {}).search.steps == 7


def test_loaded_config_refuses_new_keys():
    with pytest.raises(AttributeError):
        config_lib.load(None, {}).search.stepss = 3


def test_json_round_trip_has_no_differences():
    config = config_lib.load(None, {"data.scale": "1,2"})
    plain = config_lib.to_json_dict(config)
    assert plain["data"]["scale"] == [1.0, 2.0]
    assert config_lib.differences(plain, config) == []
    del plain["data"]["scale"]
    plain["extra"] = {"a": 1}
    assert config_lib.differences(plain, config) == ["data.scale", "extra.a"]


def test_imagenet_is_a_path_for_no_key_but_data(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    written = config_lib.with_absolute_paths({"net": {"weights": "imagenet"}, "data": {"dir": "imagenet"}})
    assert written == {"net": {"weights": "imagenet"}, "data": {"dir": str(tmp_path / "imagenet")}}
    spelled = {"net": {"weights": str(tmp_path / "imagenet")}, "data": {"dir": "./imagenet"}}
    assert config_lib.differences(written, spelled) == ["net.weights"]
    assert config_lib.differences(config_lib.with_absolute_paths({"net": {"weights": "./imagenet"}}), spelled) == [
        "data.dir"
    ]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_every_config_loads_and_says_how_to_run_it(path):
    config_lib.load(str(path), {})
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert re.search(rf"Command: dvsnas [\w-]+ --config=configs/{path.name}", text)
    assert "Time:" in text
    assert "Score:" in text


def test_every_key_is_read_by_some_code():
    names = set()
    for path in (ROOT / "dvsnas_jax").rglob("*.py"):
        if path.parent.name == "core" and path.name in ("config.py", "defaults.py", "overrides.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                names.add(node.attr)
            elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                names.add(node.slice.value)
    unread = [key for key, _ in overrides.leaves(config_lib.defaults()) if key.rsplit(".", 1)[-1] not in names]
    assert not unread, f"no code reads these config keys: {unread}"
