from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from hkmap.cli._options import map_output_options, network_options, warn_of_control
from hkmap.cli._stream import emit, emit_when_saved, error_options, read, records_argument
from hkmap.records import Record, Rejects

if TYPE_CHECKING:
    from hkmap.files.maps import MapWriter


@click.command("predict")
@records_argument
@map_output_options(required=False)
@click.option("--key", default="attention", help="The record's key for the attention map.")
@network_options(batch_size=16)
@error_options
def predict(
    records: IO[bytes], source: Path, out: Path | None, suffix: str, overwrite: bool, device: str, rejects: Rejects,
    **options: Any,
) -> None:
    """Add what a network predicts to records: prediction, confidence and, with --out, where it looked.

    The prediction is a label of the network's training data, predicted_class its name where there is one, and the
    confidence its probability. The attention map covers
    the whole image: it is 0 where a network with --fit crop saw nothing, and omits the padding of --fit letterbox.

    \b
    Example:
      hkmap unpack test.h5 | hkmap predict --from run/ --out attention/ \\
        | hkmap show --map map --map attention --out sheet.png
    """
    from hkmap.engine.prediction import predicted_records
    from hkmap.engine.runs import check_memory, load_model, pick_device
    from hkmap.files.maps import open_writer

    def predicted(maps: MapWriter | None) -> Iterable[Record]:
        return predicted_records(model, read(records, rejects), rejects, on, maps=maps, **options)

    model, on = load_model(source), pick_device(device)
    check_memory(model.architecture, model.preprocessing, options["batch_size"], device=on, training=False)
    warn_of_control(model)
    if out is None:
        emit(predicted(None))
    else:
        emit_when_saved(open_writer(out, suffix=suffix, overwrite=overwrite), predicted)
