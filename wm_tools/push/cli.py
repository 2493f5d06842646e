"""`wm-push`: upload a checkpoint, a companion, a labelled dataset or labels, with a card that tells what it is.

wm-push outputs/F/checkpoints/last/pretrained_model --repo_id=me/F --eval outputs/eval/F outputs/eval/A --baseline=A
wm-push outputs/pusht_world --repo_id=me/pusht_world --private
wm-push outputs/coc/pusht.jsonl --repo_id=me/pusht_coc
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from wm_tools.verify.kinds import kind_of, verify
from world_modality_core.io.commands import run_command
from world_modality_core.io.errors import ConfigError


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(prog="wm-push", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "path", type=Path, metavar="PATH",
        help="a checkpoint's `pretrained_model`, a companion, its merged or stripped copy, a dataset with labels, a "
        "monitor, or a JSONL of labels",
    )  # fmt: skip
    parser.add_argument("--repo_id", required=True, metavar="USER/NAME", help="where to; made if it isn't there")
    parser.add_argument("--private", action="store_true", help="a private repository (an existing one must be)")
    parser.add_argument("--branch", help="upload to this branch, made if it isn't there")
    parser.add_argument("--license", help="licence, as the Hub names them (cc-by-4.0); else the card says that none is")
    parser.add_argument(
        "--eval", nargs="+", default=[], metavar="FOLDER", help="of wm-eval: paired results for a checkpoint's card"
    )
    parser.add_argument("--baseline", default="", help="with --eval: the model that the checkpoint's is compared with")
    parser.add_argument("--matched", default="", help="with --eval: parameter-matched model trained without memory")
    parser.add_argument("--dry_run", action="store_true", help="print the card, and upload nothing")
    return parser


def work(given: argparse.Namespace) -> None:
    """Upload what the options name."""
    if not given.path.exists():
        raise ConfigError(f"path={str(given.path)!r} does not exist")
    from lerobot.utils.import_utils import register_third_party_plugins

    from lerobot_policy_world_modality.hub.uploads import push

    register_third_party_plugins()
    if kind_of(given.path.resolve()):  # else `push` says what can be uploaded
        _, faults = verify(given.path)
        if faults:
            more = f" (and {len(faults) - 1} more: wm-verify {given.path})" if len(faults) > 1 else ""
            raise ConfigError(f"nothing was uploaded: {faults[0]}{more}")
    push(given)


def main() -> int:
    """Console script `wm-push`."""
    return run_command("wm-push", make_parser(), work, remedy="goes on with the upload")


if __name__ == "__main__":
    sys.exit(main())
