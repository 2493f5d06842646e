"""Where this project is to be had: pyproject.toml, mkdocs.yml and every page name the same address."""

REPOSITORY = "https://github.com/world-modality/lerobot_policy_world_modality"


def how_to_install(extra: str) -> str:
    """The command that installs this distribution with an extra, several ("metaworld,embedded") or none ("")."""
    return f"pip install 'lerobot_policy_world_modality{extra and f'[{extra}]'} @ git+{REPOSITORY}'"
