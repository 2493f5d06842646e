"""The site's home, which starts as README.md does, and links that lead out of docs/, such as ../examples/demo/run.py.

A forge follows these links; the site doesn't hold these files. There they become plain text, or links to `repo_url`
where mkdocs.yml names one. A file that doesn't exist stays a link, which `mkdocs build --strict` refuses.
"""

import re
from pathlib import Path

FIRST_SCREEN = "<!-- The site shows README.md's first screen in place of what is above. -->"
LINK = re.compile(r"\[([^\]]+)\]\((\.\./[^)#\s]+)(#[^)\s]*)?\)")


def first_screen(readme: str, repo_url: str) -> str:
    """README.md before its first section, with links as docs/README.md would write them."""
    text = readme.split("\n## ")[0]
    return text.replace("](docs/", "](").replace("](#", f"]({repo_url}#")


def on_page_markdown(markdown: str, page, config, files) -> str:
    """Called by mkdocs with the text of each page.

    Args:
        markdown: The page's source.
        page: The page.
        config: mkdocs.yml.
        files: All files of the site.

    Returns:
        The source with the links out of docs/ replaced, and the home's first screen put in.
    """
    docs = Path(config["docs_dir"])
    repo = docs.parent
    if FIRST_SCREEN in markdown:
        after = markdown.split(FIRST_SCREEN)[1]
        markdown = first_screen((repo / "README.md").read_text(), config["repo_url"]) + after

    def replaced(match: re.Match) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        path = (docs / page.file.src_uri).parent.joinpath(target).resolve()
        if not path.exists() or not path.is_relative_to(repo) or path.is_relative_to(docs):
            return match[0]
        if config["repo_url"]:
            return f"[{text}]({config['repo_url'].rstrip('/')}/blob/main/{path.relative_to(repo)}{anchor})"
        return text if text.startswith("`") else f"`{path.relative_to(repo)}`"

    return LINK.sub(replaced, markdown)
