from __future__ import annotations

from pathlib import Path

import click

from hkmap.cli._options import FOLDER, OUTPUT, ending_in, overwrite_option
from hkmap.cli._stream import print_result
from hkmap.records import text_of


@click.command("report")
@click.argument("runs", type=FOLDER, nargs=-1, required=True, metavar="RUN...")
@click.option("--out", type=OUTPUT, required=True, callback=ending_in(".html"), metavar="FILE.html",
              help="The page to write; it needs no other file and no network.")
@overwrite_option
def report(runs: tuple[Path, ...], out: Path, overwrite: bool) -> None:
    """Write a page that shows evaluations: figures, curves, calibration, confusions, and records.

    RUN is a folder of results of `hkmap eval --out`, or a run folder with one, called eval, inside. All must be of the
    same records. The page has the figures with their intervals, insertion and deletion curves, reliability diagrams,
    confusions, learning curves where the run folder is there, the records that gained and lost most from the first RUN
    to the last that is no sham control, with what each network looked at, and how all of it was measured. Prints one
    JSON object: {"report": FILE, "runs": [RUN, ...], "bytes": N}.

    \b
    Example:
      hkmap eval test.h5 --from run-none/ --metric top1,insertion,deletion --out run-none/eval/
      hkmap eval test.h5 --from run-human/ --metric top1,insertion,deletion --out run-human/eval/
      hkmap report run-none/ run-human/ --out report.html
    """
    from hkmap.files.atomic import refuse_existing, replacing
    from hkmap.results.page import page

    refuse_existing(out, overwrite=overwrite)
    content = page(runs)
    with replacing(out, overwrite=overwrite) as beside:
        beside.write_bytes(content)
    print_result({"report": text_of(out), "runs": [text_of(run) for run in runs], "bytes": len(content)})
