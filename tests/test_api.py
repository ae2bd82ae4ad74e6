"""What is public, and what importing it costs."""

from __future__ import annotations

import inspect
import pkgutil
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import fusionflow

ROOT = Path(fusionflow.__file__).parent
MODULES = sorted(
    item.name
    for item in pkgutil.walk_packages(fusionflow.__path__, "fusionflow.")
    if not item.name.endswith("__main__")
)
PUBLIC = [name for name in fusionflow.__all__ if name != "__version__"]


def imported_by(statement: str) -> set[str]:
    """Return the top-level packages that a fresh interpreter holds after `statement`."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


class TestAll:
    def test_is_sorted_and_has_no_doubles(self):
        assert fusionflow.__all__ == sorted(set(fusionflow.__all__))

    @pytest.mark.parametrize("name", fusionflow.__all__)
    def test_every_name_can_be_imported(self, name):
        assert getattr(fusionflow, name) is not None

    def test_is_all_that_a_person_sees(self):
        assert dir(fusionflow) == fusionflow.__all__

    def test_star_gives_all_of_it(self):
        names: dict = {}
        exec("from fusionflow import *", names)
        assert set(fusionflow.__all__) <= names.keys()

    def test_names_are_those_of_the_modules_that_define_them(self):
        for name in PUBLIC:
            item = getattr(fusionflow, name)
            assert item.__name__ == name
            assert getattr(import_module(item.__module__), name) is item

    def test_type_checkers_see_the_same_names(self):
        tree = inspect.getsource(fusionflow).partition("if TYPE_CHECKING:")[2]
        lines = tree.partition("__all__")[0].split("import ")[1:]
        seen = {name.strip() for line in lines for name in line.splitlines()[0].split(",")}
        assert seen == set(PUBLIC)

    def test_other_names_are_no_attributes(self):
        with pytest.raises(AttributeError, match="'fusionflow' has no attribute 'wavelet_of'"):
            fusionflow.wavelet_of  # noqa: B018


class TestDocstrings:
    @pytest.mark.parametrize("name", PUBLIC)
    def test_everything_public_has_one(self, name):
        assert inspect.getdoc(getattr(fusionflow, name))

    @pytest.mark.parametrize("name", PUBLIC)
    def test_every_method_of_a_public_class_has_one(self, name):
        item = getattr(fusionflow, name)
        if inspect.isclass(item):
            silent = [
                attribute
                for attribute, value in vars(item).items()
                if not attribute.startswith("_")
                and (callable(value) or isinstance(value, property | classmethod | staticmethod))
                and not inspect.getdoc(value)
            ]
            assert silent == []

    @pytest.mark.parametrize("name", ["fusionflow", *MODULES])
    def test_every_module_has_one(self, name):
        assert inspect.getdoc(import_module(name))


class TestImports:
    def test_the_command_line_starts_without_what_takes_time(self):
        held = imported_by("import fusionflow.cli")
        assert "click" in held
        assert held.isdisjoint({"torch", "torchvision", "xarray", "distributed", "zarr"})

    def test_the_package_imports_nothing_heavy_until_it_is_used(self):
        assert imported_by("import fusionflow").isdisjoint({"torch", "xarray", "dask", "numpy"})
        assert "xarray" in imported_by("from fusionflow import open_cohort")

    @pytest.mark.parametrize("name", ["errors", "config", "schema", "ledger", "io.store"])
    def test_what_knows_nothing_of_networks_does_not_import_torch(self, name):
        assert "torch" not in imported_by(f"import fusionflow.{name}")


class TestVersion:
    def test_is_that_of_the_project_file(self):
        path = ROOT.parent / "pyproject.toml"
        if not path.is_file():
            pytest.skip("installed without its sources")
        with path.open("rb") as stream:
            assert tomllib.load(stream)["project"]["version"] == fusionflow.__version__

    def test_types_are_for_others_to_check_against(self):
        assert (ROOT / "py.typed").is_file()
