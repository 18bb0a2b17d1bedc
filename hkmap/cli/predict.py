from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from hkmap.cli._options import (
    Load,
    class_names_option,
    map_output_options,
    named_option,
    network_options,
    warn_of_control,
)
from hkmap.cli._stream import emit, emit_when_saved, error_options, read, records_argument
from hkmap.records import Record, Rejects

if TYPE_CHECKING:
    from hkmap.files.maps import MapWriter


@click.command("predict")
@records_argument
@map_output_options(required=False)
@named_option("--maps", table="explanations", default="attention",
              help="Which maps --out saves: the network's attention, cam, gradcam or another.")
@click.option("--layer", metavar="NAME",
              help="Of which layer cam and gradcam are, such as extractor.layer3.  [default: the last with places]")
@click.option("--target", type=click.Choice(["predicted", "label"]), default="predicted",
              help="The class that cam and gradcam explain: the one predicted, or the record's label where it has one.")
@click.option("--key", help="The record's key for the map.  [default: the name of --maps]")
@network_options(batch_size=16)
@class_names_option("as the network tells it; a run knows them")
@error_options
def predict(
    records: IO[bytes], source: Path, load: Load, out: Path | None, suffix: str, overwrite: bool, device: str,
    rejects: Rejects, maps: str, layer: str | None, target: str, key: str | None, **options: Any,
) -> None:
    """Add what a network predicts to records: prediction, confidence and, with --out, where it looked.

    The prediction is a label of the network's training data, predicted_class its name where there is one, and the
    confidence its probability. The map, by default the network's attention, covers the whole image: it is 0 where a
    network with --fit crop saw nothing, and omits the padding of --fit letterbox. A network without attention branch
    has maps by --maps gradcam.

    \b
    Example:
      hkmap unpack test.h5 | hkmap predict --from run/ --out attention/ \\
        | hkmap show --map map --map attention --out sheet.png
    """
    from hkmap.engine.ranks import current, joined
    from hkmap.engine.runs import within_memory
    from hkmap.evaluation.explain import explainer
    from hkmap.evaluation.prediction import predicted_records
    from hkmap.files.maps import open_writer

    if current().ranks > 1 and not Path(str(getattr(records, "name", ""))).is_file():
        raise click.UsageError("The processes of torchrun cannot share stdin or a pipe; name a file of records.")
    model = load()
    with joined(device) as on, within_memory(model, options["batch_size"], on):

        def predicted(writer: MapWriter | None) -> Iterable[Record]:
            return predicted_records(
                model, read(records, rejects), rejects, on, maps=writer, key=key or maps,
                explain=explainer(model=model, shards=None, **_saved(out, name=maps, layer=layer, target=target)),
                **options,
            )

        if not current().first:
            deque(predicted(None), maxlen=0)
            return
        warn_of_control(model)
        if out is None:
            emit(predicted(None))
        else:
            emit_when_saved(open_writer(out, suffix=suffix, overwrite=overwrite), predicted)


def _saved(out: Path | None, **asked: Any) -> dict[str, Any]:
    """Return what was asked of the maps; refuse it where none is saved."""
    if out is None and asked != {"name": "attention", "layer": None, "target": "predicted"}:
        raise click.UsageError("--maps, --layer and --target say which maps to save; give --out too.")
    return asked
