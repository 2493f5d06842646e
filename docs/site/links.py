"""The site's home, which starts as README.md does; links that lead out of docs/; and tables on a phone.

A link such as ../examples/demo/run.py: a forge follows it; the site doesn't hold the file. There it becomes a link to
`repo_url`, or plain text where mkdocs.yml names none. A file that doesn't exist stays a link, which `mkdocs build
--strict` refuses.
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
        page.meta["hide"] = ["toc"]
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


def on_page_content(html: str, page, config, files) -> str:
    """Called by mkdocs with each page as HTML, which is made ready for narrow screens.

    Every cell of a table says which column it is in, and no line of code ends between an option's dashes and its name.
    """
    html = re.sub(r"<table>.*?</table>", _with_columns, html, flags=re.DOTALL)
    return re.sub(r"<code>.*?</code>", _with_whole_options, html, flags=re.DOTALL)


def _with_whole_options(code: re.Match) -> str:
    return re.sub(r"(?<=[\s>'\"])--?[a-z]", r'<span class="option">\g<0></span>', code[0])


def _with_columns(table: re.Match) -> str:
    names = [re.sub(r"<[^>]+>", "", head) for head in re.findall(r"<th\b[^>]*>(.*?)</th>", table[0], re.DOTALL)]
    rows = table[0].split("<tr>")
    for i, row in enumerate(rows):
        columns = iter(names)
        rows[i] = re.sub(r"<td\b", lambda cell, columns=columns: _cell(cell[0], next(columns, "")), row)
    return "<tr>".join(rows)


def _cell(tag: str, column: str) -> str:
    quoted = column.replace('"', "&quot;")
    return f'{tag} data-column="{quoted}"' if column else tag
