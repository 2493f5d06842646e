"""`wm-report`: one HTML page of everything that studies and evaluations have recorded.

wm-report results/study1 --baseline=A --output=study1.html
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from world_modality_core.io.commands import run_command
from world_modality_core.io.errors import ConfigError
from world_modality_core.io.files import writing
from world_modality_core.io.home import how_to_install


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="wm-report", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "folders", nargs="+", metavar="FOLDER",
        help="a study, its exported records, an evaluation or an intervention; everything below the folder is read",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("report.html"), help="the page (report.html)")
    parser.add_argument(
        "--title",
        default="",
        help="heading of the page; with --row the question (default: the comment that study.yaml begins with)",
    )
    parser.add_argument("--baseline", default="", help="model that all others are compared with (default: the study's)")
    parser.add_argument(
        "--matched", default="", help="parameter-matched model, trained without memory (default: the study's)"
    )
    parser.add_argument(
        "--common_scenes", action="store_true", help="compare on the scenes that both sides have, rather than refuse"
    )
    parser.add_argument("--max_videos", type=int, default=12, help="show at most this many rollouts (12)")
    parser.add_argument("--no_videos", action="store_true", help="show no rollouts")
    parser.add_argument("--row", action="store_true", help="print one row of a Markdown table, and write no page")
    return parser


def report(given: argparse.Namespace) -> Path | None:
    """Write the page, or print the row.

    Returns:
        The page; None for a row.

    Raises:
        ConfigError: an option or a record can't be used.
        EpisodesError: the episodes can't be read together.
    """
    if given.max_videos < 0:
        raise ConfigError(f"--max_videos={given.max_videos}: expected at least 0")
    try:
        from world_modality_core.studies.report.paired_differences import compare_all
        from world_modality_core.studies.report.records import read_records
        from world_modality_core.studies.report.report_page import make_page, markdown_row, render
    except ImportError as error:
        raise ConfigError(f"{error.name} is not installed: {how_to_install('report')}") from error
    records = read_records(given.folders)
    baseline, matched = given.baseline or records.baseline, given.matched or records.matched
    compared = compare_all(records.episodes, baseline, matched, given.common_scenes)
    study = Path(given.folders[0]).resolve().name
    page = make_page(records, compared, given.title or study, 0 if given.no_videos or given.row else given.max_videos)
    if given.row:
        print(markdown_row(page, study, given.title or records.question, given.folders[0]))
        return None
    output = given.output.resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    with writing(output) as aside, aside.open("w", encoding="utf-8") as file:
        file.writelines(render(page))
    if page.refusals:
        print(f"{page.n_refused}, the page says why: {page.refusals[0]}")
    print(f"wrote {given.output} ({given.output.stat().st_size / 1e6:.1f} MB, {len(records.episodes)} episodes)")
    return given.output


def main() -> int:
    """Console script `wm-report`."""
    return run_command("wm-report", make_parser(), report, remedy="begins anew")


if __name__ == "__main__":
    sys.exit(main())
