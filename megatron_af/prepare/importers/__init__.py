"""Rows out of other people's layouts: one file per layout, and what they share.

    report = import_dataset(config, "clotho", progress)   # data.datasets.clotho.origin -> data.datasets.clotho.source

AF1's and AF2's JSON manifests (plain, interleaved, dialogue), JSON with ``conversations`` or ``messages``
(AudioSkills, LongAudio, LLaMA-Factory, ms-swift), tables with a column map (Clotho, AudioCaps, MusicCaps, ESC-50), a
folder per label, WebDataset tars, and our own rows from elsewhere.
"""

from megatron_af.prepare.importers.run import ImportReport, import_dataset

__all__ = ["ImportReport", "import_dataset"]
