"""Configurations of any content: tags, bombs, options that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from fuzzing import MB, cases, damaged, edits, memory_below, refused_at_most
from hypothesis import given
from hypothesis import strategies as st

from fusionflow.config import RunConfig, load_config

CONFIG = (Path(__file__).parents[2] / "workflows/configs/dwt-vgg19.yaml").read_text()
OPTIONS = [
    number for number, line in enumerate(CONFIG.splitlines()) if ": " in line and line[0] != "#"
]
NASTY = [
    "!!python/object/apply:os.abort []", "!!python/name:os.abort", "!!python/object:os.X {}",
    "!!int x", "!!int ''", "!!float ''", "!!bool maybe", "!!timestamp x", "!!binary x", "!!null x",
    "!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1]", "!!str [a]", "!!map []", "!!seq {}", "!x y",
    "{? [a]: b}", "{? {a: b}: c}", "{<<: {a: b}}", "{<<: [1, 2]}", "&a [*a]", "*b", "&c d", "<<",
    ".nan", ".inf", "-.inf", "1e999", "-1", "0", "0b_", "0x" + "f" * 9000, "9" * 5000, "190:20:30",
    '"\\uD800"', '"\\0"', '"\\e[2J"', "2001-02-30", "0001-01-01T00:00:00+23:59", "2001-01-01",
    "[" * 3000, "[" * 100 + "]" * 100, "- - - -", "? ? ?", "|", "null", "~", "yes", "''", "[]",
    "{}", "dwt-max", "random:0", "[relu1_1, 1, null]", "[relu1_1, relu1_1]", "{name: [[a]]}",
    "{kind: laplacian, levels: 8}", "{kind: x}", "{kind: {}}", "{levels: true}", "=", "@", "`",
]  # fmt: skip
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGE_BOMB = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{','.join([f'*{before}'] * 9)}]}}\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@st.composite
def changed_options(draw):
    """Return the example with other values for some options."""
    lines = CONFIG.splitlines()
    for _ in range(draw(st.integers(1, 2))):
        number = draw(st.sampled_from(OPTIONS))
        name = lines[number].partition(":")[0]
        lines[number] = f"{name}: {draw(st.sampled_from(NASTY) | st.text(max_size=10))}"
    return "\n".join(lines)


yaml_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.integers() | st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)
options = st.dictionaries(
    st.sampled_from(["method", "conform", "region", "cluster", "Method", ""]),
    yaml_values
    | st.dictionaries(
        st.sampled_from(["name", "transform", "rule", "weights", "taps", "window", "n_workers"]),
        yaml_values,
    ),
)
configurations = (
    changed_options()
    | options.map(yaml.safe_dump)
    | yaml_values.map(yaml.safe_dump)
    | st.text(max_size=60)
    | st.sampled_from(NASTY)
).map(lambda text: text.encode("utf-8", "surrogatepass")) | edits.map(
    lambda edits: damaged(CONFIG.encode(), edits)
)


def read_config(folder, content):
    path = folder / "run.yaml"
    path.write_bytes(content)
    with refused_at_most(path):
        config = load_config(path)
        assert RunConfig.model_validate(json.loads(config.canonical())) == config
        assert len(config.method.fingerprint("0" * 64)) == 64


class TestConfigurations:
    @given(content=configurations)
    @cases(450)
    def test_any_content(self, folder, content):
        read_config(folder, content)

    @pytest.mark.parametrize(
        "content",
        [
            BOMB,
            BOMB + "method: *i\n",
            BOMB + "method: {name: *i}\n",
            MERGE_BOMB + "method: {transform: *i}\n",
            "{" + ",".join(f"a{i}" for i in range(9000)) + "}",
            "a: b\n" * 12000,
            "#" * (1 << 20),
        ],
    )
    def test_bombs(self, tmp_path, content):
        with memory_below(128 * MB):
            read_config(tmp_path, content.encode())

    def test_one_without_end(self):
        with memory_below(16 * MB), refused_at_most("/dev/zero"):
            load_config(Path("/dev/zero"))
