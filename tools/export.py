"""Export a trained run or a saved classifier for other programs: as ONNX, an ExportedProgram or plain weights.

    python tools/export.py --model-dir RUN --output DIR                 # model.onnx, and classify.py that uses it
    python tools/export.py --model-dir RUN --output DIR --format torch  # model.pt2
    python tools/export.py --model-dir RUN --output DIR --format npz    # weights (K, D), for your own features

RUN is a folder written by tools/train.py or FewShotClassifier.save. Before DIR is created, the export is compared with
the original on the run's test images, or on --images.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from dassl_lite.classifier import FewShotClassifier
from dassl_lite.classifier.export import FILES, FORMATS, SCRIPT, require
from dassl_lite.engine.commands.arguments import ToolParser, add_plugin_flags, tool_parser
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.utils import UserError, setup_logger
from dassl_lite.utils.errors import printable
from dassl_lite.utils.logger import say


def make_parser() -> ToolParser:
    """The flags of export.py."""
    parser = tool_parser("export", __doc__, "%(prog)s [options] --model-dir RUN --output DIR")
    add = parser.add_argument
    add("--model-dir", default="", metavar="DIR", help="folder of a run or a saved classifier")
    add("--output", default="", metavar="DIR", help="folder to write, new or empty")
    add("--format", default=FORMATS[0], metavar="NAME", help=f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    add("--images", default="", metavar="PATH", help="images to compare on (default: the run's test images)")
    add_plugin_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    setup_logger(console=False)
    load_plugins(args.plugin)
    for flag in ("model_dir", "output"):
        if not getattr(args, flag):
            what = "the folder of a run, or of a saved classifier" if flag == "model_dir" else "the folder to write"
            raise UserError(f"--{flag.replace('_', '-')} is missing: {what}")
    require(Path(args.output), args.format)
    classifier = FewShotClassifier.load(args.model_dir, device="cpu")
    found = classifier.export(args.output, args.format, args.images or None)
    head = "the head is one matrix" if found.form == "linear" else "the head is traced whole"
    compared = f"{found.pictures} pictures" if found.pictures else "noise, for want of pictures (--images)"
    say(f"{classifier.method}, {len(classifier.classes_)} classes, {head}: {found.megabytes:.1f} MB")
    say(
        f"Compared on {compared}: largest difference of a probability {found.difference:.1e}, the same top class on "
        f"{found.agreement:.1f} %"
    )
    say(f"Written to {printable(args.output)}: {FILES[args.format]}{f', {SCRIPT}' if args.format == 'onnx' else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
