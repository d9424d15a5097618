"""Small copies of published benchmarks: files of the same layout, and recordings under the same names."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.data.toy import write_tone


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a benchmark is published as, and what is to be asked of it."""

    files: dict[str, str]
    recordings: Sequence[str]
    asked: Sequence[tuple[str, tuple[str, ...], int]]
    """Of each question: a part of its prompt, its references, and how many options it has."""
    left_out: dict[str, int] = field(default_factory=dict)

    def write(self, root: Path) -> None:
        for number, name in enumerate(self.recordings):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            write_tone(root / name if name.endswith(".wav") else root / f"{name}.wav", 1.0, number)
            if not name.endswith(".wav"):
                (root / f"{name}.wav").rename(root / name)
        for name, content in self.files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(content)


def lines(*rows: Sequence[object], delimiter: str = ",") -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return text.getvalue()


def captions(number: int) -> list[str]:
    return [f"sound {number} said {way}" for way in range(5)]


CHOICES = ["rain on a roof", "a dog", "wind", "bells"]
MC = {"question": "what is heard?", "choices": CHOICES, "answer": "a dog"}
AQA = lines(
    ["file_name", "QuestionText", "answer", "confidence"],
    *(["a.wav", "is it raining?", "yes", "yes"] for _ in range(3)),
    *(["a.wav", "is it a dog?", answer, "maybe"] for answer in ("no", "yes", "no")),
    *(["a.wav", "how many bells are there?", answer, "yes"] for answer in ("two", "2", "two")),
    *(["a.wav", "what animal is it?", "dog", "yes"] for _ in range(3)),
)
HEARD = "\nOPTIONS:\n - "
LAYOUTS = {
    "clotho": Layout(
        files={
            "clotho/clotho_captions_evaluation.csv": lines(
                ["file_name", *(f"caption_{n}" for n in range(1, 6))],
                ["a b.wav", *captions(0)],
                ["gone.wav", *captions(1)],
            )
        },
        recordings=["clotho/evaluation/a b.wav"],
        asked=[("describe the sound", tuple(captions(0)), 0)],
        left_out={"missing": 1},
    ),
    "audiocaps": Layout(
        files={
            "audiocaps/test.csv": lines(
                ["audiocap_id", "youtube_id", "start_time", "caption"],
                *([n, "-x_y", 30, text] for n, text in enumerate(captions(0))),
            )
        },
        recordings=["audiocaps/test/-x_y.wav"],
        asked=[("describe the sound", tuple(captions(0)), 0)],
    ),
    "musiccaps": Layout(
        files={
            "musiccaps/musiccaps-public.csv": lines(
                ["ytid", "start_s", "end_s", "aspect_list", "caption", "author_id", "is_audioset_eval"],
                ["yt1", 30, 40, "['x']", "a tune", 1, "True"],
                ["yt2", 30, 40, "['x']", "a train split's tune", 1, "False"],
            )
        },
        recordings=["musiccaps/audio/yt1.wav"],
        asked=[("describe the music", ("a tune",), 0)],
    ),
    "clotho_aqa_unanimous": Layout(
        files={"clotho_aqa/clotho_aqa_test.csv": AQA},
        recordings=["clotho_aqa/audio_files/a.wav"],
        asked=[("is it raining?\nOPTIONS:\nyes.\nno.", ("yes",), 2)],
    ),
    "clotho_aqa_non_binary": Layout(
        files={"clotho_aqa/clotho_aqa_test.csv": AQA},
        recordings=["clotho_aqa/audio_files/a.wav"],
        asked=[("how many bells", ("two", "2", "two"), 0), ("what animal", ("dog",) * 3, 0)],
    ),
    "clotho_aqa_numerical": Layout(
        files={"clotho_aqa/clotho_aqa_test.csv": AQA},
        recordings=["clotho_aqa/audio_files/a.wav"],
        asked=[("how many bells", ("two", "2", "two"), 0)],
    ),
    "music_avqa": Layout(
        files={
            "music_avqa/avqa-test.json": json.dumps(
                [
                    {
                        "video_id": "00001",
                        "question_id": number,
                        "type": json.dumps(kind),
                        "question_content": "Is the <Object1> louder than the <Object2>?",
                        "templ_values": json.dumps(["violin", "drum"]),
                        "question_deleted": 0,
                        "anser": "yes",
                    }
                    for number, kind in enumerate((["Audio", "Comparative"], ["Visual", "Counting"]))
                ]
            )
        },
        recordings=["music_avqa/videos/00001.mp4"],
        asked=[("Is the violin louder than the drum?", ("yes",), 0)],
    ),
    **{
        name: Layout(
            files={
                f"{name}/{name}_test.json": json.dumps(
                    [
                        {
                            "instruction": "why is it loud?",
                            "input": "",
                            "audio_id": "x/1.wav",
                            "task": "open-ended question",
                            "output": "A train passes.",
                        }
                    ]
                )
            },
            recordings=[f"{name}/audio/x/1.wav"],
            asked=[("why is it loud?", ("A train passes.",), 0)],
        )
        for name in ("openaqa", "compa_r")
    },
    "muchomusic": Layout(
        files={
            "muchomusic/muchomusic.csv": lines(
                ["dataset", "dataset_identifier", "genre", "question", "correct_answer"]
                + [f"distractor_{n}_answer" for n in (1, 2, 3)],
                ["sdd", "12", "rock", "which mood?", "calm", "angry", "sad", "loud"],
                ["sdd", "12", "rock", "which key?", "C", "c", "D", "E"],
            )
        },
        recordings=["muchomusic/audio/sdd/12.wav"],
        asked=[("which mood?", ("calm",), 4)],
        left_out={"two options are the same": 1},
    ),
    "musicqa": Layout(
        files={
            "musicqa/EvalMusicQA.json": json.dumps(
                [
                    {
                        "audio_name": "1.mp3",
                        "conversation": [
                            {"from": "human", "value": "what mood is it?"},
                            {"from": "gpt", "value": "It is calm."},
                        ],
                    }
                ]
            )
        },
        recordings=["musicqa/audio/1.mp3"],
        asked=[("what mood is it?", ("It is calm.",), 0)],
    ),
    "esc50": Layout(
        files={
            "esc50/meta/esc50.csv": lines(
                ["filename", "fold", "target", "category", "esc10", "src_file", "take"],
                ["1-1-A-0.wav", 1, 0, "dog", "True", 1, "A"],
                ["1-2-A-1.wav", 1, 1, "church_bells", "False", 2, "A"],
            )
        },
        recordings=["esc50/audio/1-1-A-0.wav", "esc50/audio/1-2-A-1.wav"],
        asked=[(f"{HEARD}church bells.\n - dog.", ("dog",), 2), (HEARD, ("church bells",), 2)],
    ),
    "us8k": Layout(
        files={
            "us8k/metadata/UrbanSound8K.csv": lines(
                ["slice_file_name", "fsID", "start", "end", "salience", "fold", "classID", "class"],
                ["1-1.wav", 1, 0.0, 0.3, 1, 5, 3, "dog_bark"],
                ["1-2.wav", 1, 0.0, 0.3, 1, 6, 9, "siren"],
            )
        },
        recordings=["us8k/audio/fold5/1-1.wav", "us8k/audio/fold6/1-2.wav"],
        asked=[(HEARD, ("dog bark",), 2), (HEARD, ("siren",), 2)],
    ),
    "cochlscene": Layout(
        files={},
        recordings=["cochlscene/Test/Bus/Bus_1_a.wav", "cochlscene/Test/ResidentialArea/R_1.wav"],
        asked=[(HEARD, ("bus",), 2), (HEARD, ("residentialarea",), 2)],
    ),
    "nonspeech7k": Layout(
        files={
            "nonspeech7k/metadata of test set .csv": lines(
                ["Filename", "Duration in ms", "Class ID", "Classname", "Category"],
                ["0.wav", 900, 3, "Crying", "a"],
                ["1.wav", 900, 4, "Sneeze", "a"],
            )
        },
        recordings=["nonspeech7k/test/0.wav", "nonspeech7k/test/1.wav"],
        asked=[(HEARD, ("crying",), 2), (HEARD, ("sneeze",), 2)],
    ),
    "gtzan": Layout(
        files={},
        recordings=["gtzan/genres_original/blues/blues.00000.wav", "gtzan/genres_original/hiphop/hiphop.00000.wav"],
        asked=[(HEARD, ("blues",), 2), (HEARD, ("hiphop",), 2)],
    ),
    "medley_solos": Layout(
        files={
            "medley_solos/Medley-solos-DB_metadata.csv": lines(
                ["subset", "instrument", "instrument_id", "song_id", "uuid4"],
                ["test", "clarinet", 0, 11, "0a28"],
                ["test", "female singer", 2, 11, "0b28"],
                ["training", "flute", 3, 11, "0c28"],
            )
        },
        recordings=[f"medley_solos/audio/Medley-solos-DB_test-{name}.wav" for name in ("0_0a28", "2_0b28")],
        asked=[(HEARD, ("clarinet",), 2), (HEARD, ("female singer",), 2)],
    ),
    **{
        f"nsynth_{what}": Layout(
            files={
                "nsynth-test/examples.json": json.dumps(
                    {
                        f"{family}_{source}_000-060-050": {
                            "note_str": f"{family}_{source}_000-060-050",
                            "instrument_source_str": source,
                            "instrument_family_str": family,
                            "pitch": 60,
                            "qualities": [0, 1],
                        }
                        for family, source in (("bass", "synthetic"), ("flute", "acoustic"))
                    }
                )
            },
            recordings=[
                "nsynth-test/audio/bass_synthetic_000-060-050.wav",
                "nsynth-test/audio/flute_acoustic_000-060-050.wav",
            ],
            asked=[(HEARD, (first,), 2), (HEARD, (second,), 2)],
        )
        for what, first, second in (("source", "synthetic", "acoustic"), ("instrument", "bass", "flute"))
    },
    "crema_d": Layout(
        files={},
        recordings=["crema_d/AudioWAV/1001_DFA_ANG_XX.wav", "crema_d/AudioWAV/1001_IEO_SAD_LO.wav"],
        asked=[(HEARD, ("angry",), 2), (HEARD, ("sad",), 2)],
    ),
    "ravdess": Layout(
        files={},
        recordings=["ravdess/Actor_01/03-01-01-01-01-01-01.wav", "ravdess/Actor_02/03-01-07-02-01-01-02.wav"],
        asked=[(HEARD, ("neutral",), 2), (HEARD, ("disgusted",), 2)],
    ),
    "vggsound": Layout(
        files={
            "vggsound/vggsound.csv": lines(
                ["---g-f_I2yQ", 1, "people marching", "test"],
                ["--0PQM4-hqg", 30, "waterfall burbling, close", "test"],
                ["--56QUhyDQM", 185, "playing tennis", "train"],
            )
        },
        recordings=["vggsound/audio/---g-f_I2yQ_1.wav", "vggsound/audio/--0PQM4-hqg_30.wav"],
        asked=[(HEARD, ("people marching",), 2), (HEARD, ("waterfall burbling, close",), 2)],
    ),
    "tut2017": Layout(
        files={"tut2017/meta.tsv": "audio/1.wav\tcafe/restaurant\naudio/2.wav\ttram\n"},
        recordings=["tut2017/audio/1.wav", "tut2017/audio/2.wav"],
        asked=[(HEARD, ("cafe/restaurant",), 2), (HEARD, ("tram",), 2)],
    ),
    "fsd50k": Layout(
        files={
            "fsd50k/FSD50K.ground_truth/eval.csv": lines(
                ["fname", "labels", "mids"], [37199, "Electric_guitar,Music", "/m/0,/m/1"], [175151, "Rain", "/m/2"]
            )
        },
        recordings=["fsd50k/FSD50K.eval_audio/37199.wav", "fsd50k/FSD50K.eval_audio/175151.wav"],
        asked=[(HEARD, ("electric guitar, music",), 3), (HEARD, ("rain",), 3)],
    ),
    "audioset": Layout(
        files={
            "audioset/eval_segments.csv": "# Segments csv created Sun Mar  5 10:54:25 2017\n"
            "# num_ytids=3, num_segs=3, num_unique_labels=527, num_positive_labels=51804\n"
            "# YTID, start_seconds, end_seconds, positive_labels\n"
            '--4gqARaEJE, 0.000, 10.000, "/m/068hy,/m/0ytgt"\n'
            '-0RWZT-miFs, 30.000, 40.000, "/m/0ytgt"\n'
            '-0TENBOx94k, 30.000, 40.000, "/m/0ytgt,/m/gone"\n',
            "audioset/class_labels_indices.csv": lines(
                ["index", "mid", "display_name"],
                [3, "/m/0ytgt", "Child speech, kid speaking"],
                [73, "/m/068hy", "Domestic animals, pets"],
            ),
        },
        recordings=[f"audioset/eval/{name}.wav" for name in ("--4gqARaEJE", "-0RWZT-miFs", "-0TENBOx94k")],
        asked=[
            (HEARD, ("child speech, kid speaking, domestic animals, pets",), 2),
            (HEARD, ("child speech, kid speaking",), 2),
        ],
        left_out={"bad row": 1},
    ),
    "mmau": Layout(
        files={
            "mmau/mmau-test-mini.json": json.dumps(
                [
                    {**MC, "id": name, "audio_id": "./test-mini-audios/3fe6.wav", "task": task, "answer": answer}
                    for name, task, answer in (("3fe6", "sound", "a dog"), ("4", "music", "a cat"), ("5", "music", ""))
                ]
            )
        },
        recordings=["mmau/test-mini-audios/3fe6.wav"],
        asked=[("(B) a dog (C) wind", ("a dog",), 4)],
        left_out={"bad row": 1, "its answer is none of its options": 1},
    ),
    "mmar": Layout(
        files={
            "mmar/MMAR-meta.json": json.dumps(
                [{**MC, "id": "1_00", "audio_path": "./audio/1.wav", "modality": "mix-sound-music", "timestamp": []}]
            )
        },
        recordings=["mmar/audio/1.wav"],
        asked=[("(B) a dog (C) wind", ("a dog",), 4)],
    ),
    "audio_entailment": Layout(
        files={
            "audio_entailment/clotho_entailment_test.csv": lines(
                ["Audio file", "Caption", "Entailment", "Neutral", "Contradiction"],
                ["a.wav", "rain falls", "water falls", "a storm comes", "it is dry"],
            )
        },
        recordings=["clotho/evaluation/a.wav"],
        asked=[
            ("Hypothesis: water falls", ("entailment",), 3),
            ("Hypothesis: a storm comes", ("neutral",), 3),
            ("Hypothesis: it is dry", ("contradiction",), 3),
        ],
    ),
    "longaudiobench": Layout(
        files={
            "longaudiobench/LongAudioBench.json": json.dumps(
                [
                    {
                        "id": "a",
                        "sound": "a.wav",
                        "duration": 1.0,
                        "conversations": [
                            {"from": "human", "value": "<sound>\nwhat happens?"},
                            {"from": "gpt", "value": "It rains, then stops."},
                        ],
                    }
                ]
            )
        },
        recordings=["longaudiobench/audio/a.wav"],
        asked=[("what happens?", ("It rains, then stops.",), 0)],
    ),
    "longaudio": Layout(
        files={
            "longaudio/held_out.jsonl": "".join(
                json.dumps({"id": "a", "clips": [{"path": "a.wav", "duration": 1.0}], "questions": [question]}) + "\n"
                for question in (
                    {"prompt": "what begins last?", "output": "rain", "options": ["dog", "rain"], "skill": "temporal"},
                    {"prompt": "what happens?", "output": "A dog barks, then it rains.", "skill": "captioning"},
                )
            )
        },
        recordings=["a.wav"],
        asked=[
            ("what begins last?\n(A) dog (B) rain", ("rain",), 2),
            ("what happens?", ("A dog barks, then it rains.",), 0),
        ],
    ),
    "dialogue": Layout(
        files={
            "dialogue/test.json": json.dumps(
                {
                    "split": "test",
                    "split_path": "",
                    "flamingo_task": "AudioSet-Dialog",
                    "total_num": 1,
                    "data": {
                        "0": {
                            "name": "a.wav",
                            "dialogue": [
                                {"user": "what is it?", "assistant": "rain"},
                                {"user": "is it loud?", "assistant": "no"},
                            ],
                        }
                    },
                }
            )
        },
        recordings=["dialogue/audio/a.wav"],
        asked=[("what is it?", ("rain",), 0), ("is it loud?", ("no",), 0)],
    ),
}
