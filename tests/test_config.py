"""What a person chooses is checked by name and value, and has one fingerprint."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import pywt
from pydantic import ValidationError

from fusionflow.config import (
    METHODS,
    ConformOptions,
    LaplacianPyramid,
    Method,
    RunConfig,
    Wavelet,
    load_config,
    named_method,
    validated,
)
from fusionflow.errors import ConfigurationError


@pytest.fixture
def load(tmp_path):
    def load(text: str) -> RunConfig:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return load_config(path)

    return load


class TestNamedMethods:
    def test_a_method_is_found_by_its_name(self):
        assert {name: named_method(name).name for name in METHODS} == {
            name: name for name in METHODS
        }

    def test_an_unknown_name_is_refused_and_the_known_ones_are_listed(self):
        with pytest.raises(ConfigurationError, match="'dwt-vgg91'") as error:
            named_method("dwt-vgg91")
        assert all(name in error.value.mend for name in METHODS)

    def test_the_default_is_the_method_of_the_paper(self):
        assert RunConfig().method == METHODS["dwt-vgg19"]

    def test_methods_cannot_be_changed_in_place(self):
        with pytest.raises(ValidationError, match="frozen"):
            METHODS["mri"].rule = "pet"


class TestValues:
    @pytest.mark.parametrize("window", [2, 4, 30])
    def test_a_window_without_a_middle_is_refused(self, window):
        with pytest.raises(ValueError, match="odd"):
            Method(name="m", rule="average", window=window)

    @pytest.mark.parametrize("window", [1, 3, 31])
    def test_a_window_with_a_middle_is_taken(self, window):
        assert Method(name="m", rule="average", window=window).window == window

    @pytest.mark.parametrize("name", ["db", "Haar", "mexh", "morl", ""])
    def test_what_is_no_discrete_wavelet_is_refused(self, name):
        with pytest.raises(ValueError, match="no discrete wavelet"):
            Wavelet(name=name)

    @pytest.mark.parametrize("mode", ["mirror", "Symmetric", ""])
    def test_an_unknown_extension_mode_is_refused(self, mode):
        with pytest.raises(ValueError, match="no extension mode"):
            Wavelet(mode=mode)

    @pytest.mark.parametrize("mode", pywt.Modes.modes)
    def test_every_extension_mode_of_pywavelets_is_taken(self, mode):
        assert Wavelet(mode=mode).mode == mode

    @pytest.mark.parametrize(
        "options",
        [
            {"temperature": 0},
            {"temperature": -1},
            {"temperature": float("nan")},
            {"temperature": float("inf")},
            {"batch": 0},
            {"window": -1},
            {"precision": "float16"},
            {"transform": {"levels": -1}},
            {"transform": {"levels": 1.5}},
        ],
        ids=str,
    )
    def test_a_value_out_of_range_is_refused(self, options):
        with pytest.raises(ValueError, match=next(iter(options))):
            Method(name="m", rule="average", **options)

    @pytest.mark.parametrize("percentile", [50, 100.1, float("nan")])
    def test_a_percentile_lies_in_the_upper_half(self, percentile):
        with pytest.raises(ValueError, match="pet_percentile"):
            ConformOptions(pet_percentile=percentile)


DEFAULT = METHODS["dwt-vgg19-l1"]
CHANGES = {
    "transform": [
        Wavelet(name="haar"),
        Wavelet(levels=2),
        Wavelet(mode="periodization"),
    ],
    "rule": ["max-abs"],
    "backbone": [None, "vgg16"],
    "taps": [(), ("relu1_1",), ("relu1_1", "relu2_1", "conv3_1")],
    "window": [1],
    "temperature": [0.5000001],
    "balance": [0.7],
    "precision": ["bfloat16", "int8"],
    "batch": [8],
    "threads": [2],
}


class TestFingerprint:
    @pytest.mark.parametrize(
        ("field", "value"), [(field, value) for field in CHANGES for value in CHANGES[field]]
    )
    def test_every_parameter_changes_it(self, field, value):
        changed = DEFAULT.model_copy(update={field: value})
        assert changed.fingerprint("w") != DEFAULT.fingerprint("w")

    def test_no_parameter_is_left_out(self):
        assert {*CHANGES, "name", "weights"} == set(Method.model_fields)
        assert set(Wavelet.model_fields) - {"kind"} == {
            field
            for wavelet in CHANGES["transform"]
            for field in Wavelet.model_fields
            if getattr(wavelet, field) != getattr(DEFAULT.transform, field)
        }

    def test_another_kind_of_transform_changes_it(self):
        pyramid = LaplacianPyramid(kind="laplacian", levels=1)
        changed = DEFAULT.model_copy(update={"transform": pyramid})
        deeper = changed.model_copy(update={"transform": pyramid.model_copy(update={"levels": 2})})
        prints = {method.fingerprint("w") for method in (DEFAULT, changed, deeper)}
        assert len(prints) == 3

    def test_weights_change_it(self):
        identities = [None, "random:0", "random:1", "0" * 64]
        assert len({DEFAULT.fingerprint(identity) for identity in identities}) == 4

    def test_neither_the_name_nor_the_place_of_the_weights_changes_it(self):
        renamed = DEFAULT.model_copy(update={"name": "mine", "weights": "/elsewhere/vgg19.pth"})
        assert renamed.fingerprint("w") == DEFAULT.fingerprint("w")

    def test_equal_methods_have_equal_ones_however_they_were_written(self, load):
        written = load(
            "method:\n  name: dwt-vgg19-l1\n  batch: 16\n  taps: [relu1_1, relu2_1, relu3_1]\n"
            "  rule: l1-soft\n  backbone: vgg19\n  temperature: 5.0e-1\n"
            "  transform: {mode: symmetric, levels: 1, name: db2}\n"
        ).method
        assert written == DEFAULT
        assert written.fingerprint("w") == DEFAULT.fingerprint("w")
        whole, decimal = (
            DEFAULT.model_validate({**DEFAULT.model_dump(), "temperature": one}) for one in (1, 1.0)
        )
        assert whole.fingerprint("w") == decimal.fingerprint("w")

    def test_is_a_sha256(self):
        assert len(bytes.fromhex(DEFAULT.fingerprint(None))) == 32

    def test_canonical_options_are_the_same_for_the_same_options(self):
        one = ConformOptions(mri_percentile=99, pet_percentile=98)
        other = ConformOptions(pet_percentile=98.0, mri_percentile=99.0)
        assert one.canonical() == other.canonical() != ConformOptions().canonical()


class TestYaml:
    def test_an_empty_file_means_the_defaults(self, load):
        assert load("") == load("# nothing chosen\n") == RunConfig()

    def test_a_method_is_chosen_by_name(self, load):
        assert load("method: dwt-max").method == METHODS["dwt-max"]

    def test_a_mapping_with_a_known_name_starts_from_that_method(self, load):
        method = load("method: {name: dwt-vgg19, window: 5}").method
        assert method == METHODS["dwt-vgg19"].model_copy(update={"window": 5})

    def test_a_mapping_with_a_name_of_its_own_starts_from_nothing(self, load):
        assert load("method: {name: mine, rule: average}").method == Method(
            name="mine", rule="average"
        )
        with pytest.raises(ConfigurationError, match=r"method\.rule"):
            load("method: {name: mine}")

    def test_all_sections(self, load):
        config = load(
            "region: mask\nconform: {mri_percentile: 99}\n"
            "cluster: {n_workers: 3, work_dir: /scratch, address: 'tcp://head:8786'}\n"
        )
        assert config.region == "mask"
        assert config.conform.mri_percentile == 99
        assert (config.cluster.n_workers, str(config.cluster.work_dir)) == (3, "/scratch")

    @pytest.mark.parametrize(
        ("text", "option"),
        [
            ("metod: dwt-max", "metod"),
            ("method: {name: dwt-vgg19, windows: 5}", "method.windows"),
            ("method: {name: dwt-vgg19, transform: {level: 2}}", "method.transform.level"),
            ("conform: {percentile: 99}", "conform.percentile"),
            ("cluster: {workers: 2}", "cluster.workers"),
            ("1: 2", "1"),
        ],
    )
    def test_a_misspelt_option_is_refused_with_file_and_option(self, load, tmp_path, text, option):
        with pytest.raises(ConfigurationError) as error:
            load(text)
        assert f"{tmp_path / 'run.yaml'}: {option}: " in str(error.value)

    @pytest.mark.parametrize(
        ("text", "option"),
        [
            ("method: dwt-vgg91", "method"),
            ("method: [dwt-vgg19]", "method"),
            ("method: null", "method"),
            ("region: brain", "region"),
            ("method: {name: dwt-vgg19, window: 4}", "method.window"),
            ("method: {name: dwt-vgg19, transform: {name: db99}}", "method.transform.name"),
            ("method: {name: dwt-vgg19, taps: relu1_1}", "method.taps"),
            ("cluster: {n_workers: 0}", "cluster.n_workers"),
            ("cluster: {memory_mb: lots}", "cluster.memory_mb"),
            ("method: {name: [dwt-vgg19]}", "method.name"),
            ("method: {name: {dwt: vgg19}}", "method.name"),
        ],
    )
    def test_a_wrong_value_is_refused_with_file_and_option(self, load, tmp_path, text, option):
        with pytest.raises(ConfigurationError) as error:
            load(text)
        assert f"{tmp_path / 'run.yaml'}: {option}: " in str(error.value)

    @pytest.mark.parametrize(
        ("text", "option"),
        [
            ("method: {name: dwt-vgg19, transform: {levels: true}}", "method.transform.levels"),
            ("method: {name: dwt-vgg19, batch: '8'}", "method.batch"),
            ("conform: {mri_percentile: '99'}", "conform.mri_percentile"),
        ],
    )
    def test_a_wrong_type_is_refused_and_never_converted(self, load, text, option):
        with pytest.raises(ConfigurationError, match=option):
            load(text)

    def test_every_fault_is_named(self, load):
        with pytest.raises(ConfigurationError) as error:
            load("region: brain\nmetod: dwt-max\n")
        assert "region: " in str(error.value)
        assert "metod: " in str(error.value)

    @pytest.mark.parametrize("text", ["- dwt-vgg19", "dwt-vgg19", "42"])
    def test_what_is_no_mapping_is_refused(self, load, text):
        with pytest.raises(ConfigurationError, match=r"run\.yaml holds a (list|str|int)"):
            load(text)

    @pytest.mark.parametrize(
        "text", ["method: [", "a: b: c", "\tregion: mask", "method: mri\x00", "&a *b"]
    )
    def test_what_is_no_yaml_is_refused(self, load, text):
        with pytest.raises(ConfigurationError, match=r"run\.yaml is not valid YAML"):
            load(text)

    @pytest.mark.parametrize(
        "value",
        ["!!int ''", "!!bool maybe", "!!timestamp x", "[" * 5000],
    )
    def test_a_value_that_yaml_cannot_make_is_refused(self, load, value):
        with pytest.raises(ConfigurationError, match=r"run\.yaml is not valid YAML: ."):
            load(f"region: {value}")

    @pytest.mark.parametrize("option", ["n_workers", "threads_per_worker", "memory_mb", "window"])
    def test_a_number_beyond_any_machine_is_refused(self, load, option):
        with pytest.raises(ConfigurationError, match=f"cluster.{option}: .*less than"):
            load(f"cluster: {{{option}: 0x{'f' * 9000}}}")

    @pytest.mark.parametrize("link", ["[*a, *a]", "{<<: [*a, *a]}"])
    def test_aliases_are_refused_before_they_grow(self, load, link):
        with pytest.raises(ConfigurationError, match=r"\*a: write it out, aliases are not read"):
            load(f"conform: &a {{mri_percentile: 99}}\nmethod: {link}\n")

    def test_a_large_file_is_refused(self, load):
        with pytest.raises(ConfigurationError, match=r"run\.yaml: .*Larger than 65536 bytes"):
            load("#" * 70_000)

    def test_a_name_given_twice_among_thousands_is_found_at_once(self, load):
        names = ", ".join(f"a{number}" for number in range(8000))
        with pytest.raises(ConfigurationError, match="a17 is given twice"):
            load(f"{{{names}, a17}}")

    def test_of_many_faults_the_first_are_told(self, load):
        with pytest.raises(ConfigurationError, match="and 90 more") as error:
            load("\n".join(f"a{number}: 1" for number in range(100)))
        assert len(str(error.value)) < 1000

    def test_a_pipe_is_read(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=("region: mask",))
        writer.start()
        assert load_config(tmp_path / "pipe").region == "mask"
        writer.join()

    def test_a_date_that_does_not_exist_is_refused(self, load):
        with pytest.raises(ConfigurationError, match=r"run\.yaml"):
            load("cluster: {address: 2024-13-45}")

    @pytest.mark.parametrize(
        "tag",
        [
            "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{}]]",
            "!!python/object/apply:os.mkdir ['{}']",
            "!!python/object/new:os.mkdir ['{}']",
            "!!python/name:os.mkdir ''",
        ],
    )
    def test_a_file_cannot_run_code(self, load, tmp_path, tag):
        trace = tmp_path / "trace"
        with pytest.raises(ConfigurationError, match="not valid YAML"):
            load(f"method: {tag.format(trace)}")
        assert not trace.exists()

    def test_a_file_that_is_not_there_is_named(self, tmp_path):
        with pytest.raises(ConfigurationError, match=r"Cannot read.*absent\.yaml"):
            load_config(tmp_path / "absent.yaml")

    def test_a_folder_is_named(self, tmp_path):
        with pytest.raises(ConfigurationError, match="Cannot read"):
            load_config(tmp_path)

    def test_what_is_no_text_is_named(self, tmp_path):
        path = tmp_path / "run.yaml"
        path.write_bytes(b"region: \xff\xfe")
        with pytest.raises(ConfigurationError, match=r"Cannot read.*run\.yaml"):
            load_config(path)


def test_a_reference_region_is_of_suvr_alone(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("input: {reference_region: pons}\n")
    with pytest.raises(ConfigurationError, match=r"run\.yaml: input: .*pons has no use.*stored"):
        load_config(path)
    path.write_text("input: {reference_region: pons}\nconform: {pet_units: suvr}\n")
    assert load_config(path).input.reference_region == "pons"


def test_options_that_are_no_file_say_where_they_came_from():
    with pytest.raises(ConfigurationError, match="--method: method: "):
        validated({"method": "nope"}, "--method")


def test_the_example_configuration_holds_every_default():
    example = Path(__file__).parents[1] / "workflows" / "configs" / "dwt-vgg19.yaml"
    assert load_config(example) == RunConfig()
