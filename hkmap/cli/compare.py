from __future__ import annotations

from itertools import chain
from pathlib import Path

import click

from hkmap.cli._options import OUTPUT, RESAMPLES, SEED
from hkmap.cli._stream import print_result, print_text, quiet, say, show_table


def _names(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name.strip() for name in chain.from_iterable(value.split(",") for value in values))


@click.command("compare")
@click.argument("arms", nargs=-1, required=True, metavar="[NAME=]RUN...")
@click.option("--metric", "metrics", multiple=True, callback=_names, metavar="NAME",
              help="Compare only this figure of the results, such as top1; repeatable, or with commas.  [default: all "
                   "that every arm has]")
@click.option("--group", metavar="KEY",
              help="A key of the records, such as patient, whose groups are drawn and flipped as a whole.")
@click.option("--by", metavar="KEY",
              help="Also show in which group by this key, such as class, an arm does worst. As it is picked for that, "
                   "its interval is not corrected.")
@click.option("--format", "form", type=click.Choice(["json", "table", "csv", "latex"]), default="json",
              help="What goes to stdout; latex needs \\usepackage{booktabs}. Sentences go to stderr, and so does the "
                   "table if it is not chosen.")
@click.option("--keep", type=OUTPUT, metavar="DIR",
              help="Also write each arm in brief, as DIR/NAME.json: an argument of which compare makes the same again, "
                   "without --by and figures of all records together.")
@click.option("--resamples", type=RESAMPLES, default=2000, help="Draws of the bootstrap.")
@click.option("--seed", type=SEED, default=0, help="Determines the draws.")
def compare(arms: tuple[str, ...], form: str, keep: Path | None, **options: object) -> None:
    """Compare ways of training by the results of `hkmap eval --out`, and with their sham controls.

    RUN is a run folder with results inside (RUN/eval), a folder of results, or an arm that --keep wrote. A pattern in
    quotes matches the seeds of an arm, and NAME= gives it a name. Every arm is compared with the first, and arms that
    learnt human maps with every sham control. All must be of the same records.

    \b
    difference  of each record, averaged over the seeds; seeds are paired by
                the runs' seeds, or by the order of the names
    interval    95 %: a bootstrap of the records (or groups), and with several
                seeds Student's t of the seeds too: it speaks of other seeds
    p           permutation test that flips the signs of records (or groups); it
                speaks of these networks only
    p_seeds     with several seeds the p that belongs to the interval
    p_holm      the larger p, after Holm's correction for all comparisons
    found       the interval excludes 0, and p_holm is below 0.05

    Figures of all records together, such as auroc, have no p of records. A figure is compared on the records that have
    it in all results. Prints one JSON object; its `sentences` say what was found.

    \b
    Example:
      hkmap compare 'none=runs/none-*' 'human=runs/human-*' 'shuffled=runs/shuffled-*' --metric top1,mse
    """
    from hkmap.files.references import file_name
    from hkmap.report.verdicts import COLUMNS, csv_text, latex_text, sentences, table_rows
    from hkmap.results.brief import write_arm
    from hkmap.results.comparison import ComparisonOptions, find_arms
    from hkmap.results.comparison import compare as compared

    if len(arms) < 2:
        raise click.UsageError("Nothing to compare with: name at least two arms.")
    found = find_arms(arms)
    result = compared(found, ComparisonOptions(**options))      # type: ignore[arg-type]
    if keep is not None:
        for arm in found:
            write_arm(keep / f"{file_name(arm.name)}.json", arm.results)
    result["sentences"] = sentences(result)
    show_table(COLUMNS, table_rows(result), title="arm minus against", width=130, stdout=form == "table")
    for sentence in () if quiet() else result["sentences"]:
        say(sentence)
    if form == "json":
        print_result(result)
    elif form != "table":
        print_text({"csv": csv_text, "latex": latex_text}[form](result))
