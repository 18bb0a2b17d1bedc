from __future__ import annotations

from pathlib import Path

import click

from hkmap.cli._options import classes_option, root_argument, split_option
from hkmap.cli._stream import emit, error_options
from hkmap.records import Rejects


@click.command("dogs")
@root_argument
@split_option
@classes_option
@error_options
def dogs(root: Path, split: str, present: bool, rejects: Rejects) -> None:
    """Print the images of Stanford Dogs as records, with the boxes around the dogs.

    ROOT holds the unpacked archives: Images, Annotation, and train_list.mat and test_list.mat (or lists/ with them).
    The id is the file's stem, the label the data set's minus one (0 to 119), the class the name of the folder.
    Class folders that are absent are left out with a warning.

    \b
    Example:
      hkmap dogs StanfordDogs --split train | head -24 | hkmap show --out dogs.png
    """
    from hkmap.sources.dogs import dogs_records

    emit(dogs_records(root, split=split, present=present, rejects=rejects))
