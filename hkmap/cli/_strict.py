"""Commands that refuse what they would not use: an option given twice, and one that they do not have.

The second is told which option was meant, also where other programs call it otherwise. The help of a command with many
options has sections.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import click

#: What other programs call our options; the first that a command has is meant.
_OTHERS = {
    "lr": ("--learning-rate", "--lr-rate", "--learning_rate", "--base-lr", "--initial-lr"),
    "out": ("--output", "-o", "--output-dir", "--out-dir", "--outdir", "--save-dir", "--dest", "--to-dir"),
    "batch-size": ("--batchsize", "--batch", "--bs", "-b", "--minibatch-size"),
    "jobs": ("--n-jobs", "--njobs", "-j", "--num-workers", "--workers", "--threads", "--num-threads", "--processes"),
    "epochs": ("--n-epochs", "--num-epochs", "--max-epochs", "--nepochs", "-e"),
    "image-size": ("--img-size", "--imgsz", "--imagesize", "--input-size", "--resolution", "--size"),
    "size": ("--map-size", "--resize", "--image-size", "--shape", "-s"),
    "arch": ("--model", "--architecture", "--backbone", "--network", "-a", "-m"),
    "from": ("--checkpoint", "--ckpt", "--run", "--model", "--load", "--init-from"),
    "weights": ("--init", "--checkpoint"),
    "overwrite": ("--force", "-f", "--replace", "--clobber", "-y"),
    "device": ("--gpu", "--gpus", "--cuda", "-d"),
    "seed": ("--random-seed", "--random-state", "--rng-seed"),
    "metric": ("--metrics", "--measure", "--score"),
    "folds": ("--kfold", "--k-folds", "--kfolds", "--n-folds", "--n-splits", "-k"),
    "shares": ("--split", "--ratio", "--ratios", "--proportions", "--fractions"),
    "val-share": ("--val-split", "--validation-split", "--val-fraction"),
    "val": ("--validation", "--valid", "--val-data"),
    "weight-decay": ("--wd", "--l2"),
    "augment": ("--augmentation", "--aug", "--transforms"),
    "bandwidth": ("--sigma", "--bw", "--radius"),
    "normalise": ("--normalize", "--norm", "--scale"),
    "colour": ("--color", "--cmap", "--colormap"),
    "label": ("--labels", "--class", "--classes"),
    "lesion": ("--lesions", "--mask", "--masks"),
    "masks": ("--mask", "--mask-dir", "--masks-dir", "--annotations"),
    "images": ("--image-dir", "--images-dir", "--img-dir", "--image-folder", "--image", "--root"),
    "sort": ("--sort-by", "--order-by", "--by"),
    "first": ("--limit", "--top", "--head", "--count", "-n"),
    "descending": ("--reverse", "--desc", "-r"),
    "group": ("--groups", "--group-by", "--patient"),
    "classes": ("--class-names", "--names", "--labels"),
    "shard-size": ("--shard-count", "--maxcount", "--records-per-shard"),
    "shard-bytes": ("--maxsize", "--max-size"),
    "help": ("--usage", "-?"),
    "quiet": ("--silent",),
}


_WIDEST = 30      # characters of an option before its help begins on the next line, as click has it


def section(title: str, *decorators: Callable[..., Any]) -> Callable[..., Any]:
    """Return a decorator that adds options, in this order, under a title of their own in the command's help."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        before = len(getattr(function, "__click_params__", ()))
        for add in reversed(decorators):
            function = add(function)
        for option in vars(function)["__click_params__"][before:]:
            option.section = title
        return function

    return decorate


class StrictCommand(click.Command):
    """A command, or a group, that looks at the whole line before it does anything with it."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections in the order of their first options; what is in none comes last."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for option in self.get_params(ctx):
            if isinstance(option, click.Option) and (record := option.get_help_record(ctx)):
                sections.setdefault(getattr(option, "section", "Options"), []).append(record)
        if sections.keys() <= {"Options"}:
            super().format_options(ctx, formatter)
            return
        width = min(_WIDEST, max(len(flags) for rows in sections.values() for flags, _ in rows))
        for title in sorted(sections, key="Options".__eq__):      # a stable order
            with formatter.section(title if title != "Options" else "Other options"):
                formatter.write_dl([(flags.ljust(width), text) for flags, text in sections[title]])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:      # the shell completes a line that is not whole
            self._refuse(ctx, list(args))
        return super().parse_args(ctx, args)

    def _refuse(self, ctx: click.Context, args: list[str]) -> None:
        try:
            given = self.make_parser(ctx).parse_args(args)[2]
        except click.NoSuchOption as error:
            name, meant = error.option_name, self._meant(error.option_name)
            if meant is None:
                raise      # click knows what is spelt nearly so
            message = f"No such option '{name}'. Did you mean '{meant}'?"
            raise click.NoSuchOption(name, message, ctx=error.ctx) from error
        for option, count in Counter(given).items():
            if isinstance(option, click.Option) and count > 1 and not _adds_up(option):
                name = max(option.opts, key=len)
                raise click.UsageError(f"{name} is given {count} times, and only one can count; give it once.", ctx)

    def _meant(self, name: str) -> str | None:
        own = {flag for option in self.params for flag in (*option.opts, *option.secondary_opts)}
        tried = "--" + name.lower().lstrip("-").replace("_", "-")
        if tried in own:
            return tried
        also = {name, tried}
        return next((f"--{ours}" for ours, others in _OTHERS.items() if also & {*others} and f"--{ours}" in own), None)


def _adds_up(option: click.Option) -> bool:
    """Whether an option may be repeated: it is a list, a count, or a flag that has no opposite."""
    return option.multiple or option.count or (option.is_flag and not option.secondary_opts)
