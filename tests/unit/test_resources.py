"""Where templates, site files and error pages are looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.errors import SpecError
from launcher.resources import (
    builtin,
    config_directories,
    config_home,
    error_pages,
    find_site,
    model_cache,
    search_path,
    site_names,
    state_home,
    templates,
)


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {
        "HOME": str(tmp_path / "home"),
        "XDG_CONFIG_HOME": str(tmp_path / "xdg"),
        "HPC_LLM_CONFIG_DIR": str(tmp_path / "own"),
    }


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_what_is_shipped_is_there() -> None:
    assert {"local", "dgx-h100"} <= site_names({"HOME": "/nowhere"}).keys()
    shipped = templates({"HOME": "/nowhere"})
    assert {"slurm/script.sh.j2", "local/script.sh.j2", "partials/body.sh.j2"} <= shipped.keys()
    assert builtin("templates").is_dir()


def test_places_follow_the_home_unless_xdg_says_otherwise(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    assert config_home(home) == tmp_path / ".config/hpc-llm"
    assert state_home(home) == tmp_path / ".local/state/hpc-llm"
    assert model_cache(home) == tmp_path / ".cache/hpc-llm/models"
    assert state_home(home | {"XDG_STATE_HOME": "/s"}) == Path("/s/hpc-llm")
    assert model_cache(home | {"XDG_CACHE_HOME": "/c"}) == Path("/c/hpc-llm/models")
    assert model_cache(home | {"HPC_LLM_MODEL_CACHE": "/m"}) == Path("/m")
    assert state_home(home | {"XDG_STATE_HOME": ""}) == tmp_path / ".local/state/hpc-llm"


def test_the_most_personal_place_comes_first(environ: dict[str, str], tmp_path: Path) -> None:
    places = [tmp_path / "own", tmp_path / "xdg/hpc-llm", Path("/etc/hpc-llm")]
    assert config_directories(environ) == places
    assert search_path("site_configs", environ)[:3] == tuple(p / "site_configs" for p in places)


def test_a_site_of_ones_own_hides_the_shipped_one(environ: dict[str, str], tmp_path: Path) -> None:
    mine = put(tmp_path / "xdg/hpc-llm/site_configs/local.yaml", "mine")
    assert find_site("local", environ) == mine
    nearer = put(tmp_path / "own/site_configs/local.yaml", "nearer")
    assert find_site("local", environ) == nearer


def test_only_yaml_files_are_sites(environ: dict[str, str], tmp_path: Path) -> None:
    for name in ("notes.txt", "x.yaml.bak", "good.yaml"):
        put(tmp_path / "own/site_configs" / name, "")
    own = site_names(environ).keys() - site_names({"HOME": "/nowhere"}).keys()
    assert own == {"good"}


def test_a_template_of_ones_own_hides_that_one_alone(
    environ: dict[str, str], tmp_path: Path
) -> None:
    put(tmp_path / "own/templates/local/script.sh.j2", "mine")
    found = templates(environ)
    assert found["local/script.sh.j2"] == "mine"
    assert found["slurm/script.sh.j2"] == templates({"HOME": "/nowhere"})["slurm/script.sh.j2"]


def test_a_path_is_taken_as_it_is(environ: dict[str, str]) -> None:
    assert find_site("./x", environ) == Path("x")
    assert find_site("x.yaml", environ) == Path("x.yaml")


def test_an_unknown_site_is_told_with_the_nearest_name(environ: dict[str, str]) -> None:
    with pytest.raises(SpecError) as caught:
        find_site("dgx-h10", environ)
    (problem,) = caught.value.problems
    assert problem.code == "site.unknown"
    assert problem.hint is not None
    assert "dgx-h100" in problem.hint


def test_every_error_page_has_a_text() -> None:
    assert all(text for text in error_pages().values())
