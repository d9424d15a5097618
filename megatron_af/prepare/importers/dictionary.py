"""A published list of what codes of labels mean, such as AudioSet's ``class_labels_indices.csv``.

    words = dictionary(root, origin)            # {"/m/09x0r": "Speech", …}; empty where origin names none
"""

import csv

from megatron_af.config import ImportConfig
from megatron_af.data.storage import DataRoot
from megatron_af.foreign import ForeignError, decoded


def dictionary(root: DataRoot, origin: ImportConfig) -> dict[str, str]:
    """
    Raises:
        ForeignError: the list lacks a column, has half a line or a code twice.
        StorageError: the list is not there.
    """
    if origin.dictionary is None:
        return {}
    listed = origin.dictionary
    where, asked = f"{root}/{listed.path}", {"code": listed.code, "means": listed.means}
    records = csv.DictReader(decoded(root.read(listed.path), where).splitlines())
    for key, column in asked.items():
        if column not in (records.fieldnames or ()):
            raise ForeignError(
                f"{where}: origin.dictionary.{key} = {column!r}, and the list has {records.fieldnames or []}"
            )
    words: dict[str, str] = {}
    for record in records:
        code, meaning = record[listed.code], record[listed.means]
        if not code or not meaning:
            raise ForeignError(f"{where}: line {records.line_num} has no {listed.means if code else listed.code}")
        if words.setdefault(code, meaning) != meaning:
            raise ForeignError(f"{where}: line {records.line_num}: {code} means {words[code]!r} already")
    return words
