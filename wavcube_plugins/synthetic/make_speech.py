"""Makes the speech that comes with the package: `python -m wavcube_plugins.synthetic.make_speech`.

Ten voices of espeak-ng say twelve sentences each, 16 kHz FLAC, with exact phones in `transcripts.tsv`. The sentences
were written for this purpose. Running it again gives the same samples.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import soundfile
from torch import Tensor

from wavcube_plugins.files import atomic_path
from wavcube_plugins.synthetic.bundled import COLUMNS, FOLDER, SAMPLE_RATE, TRANSCRIPTS
from wavcube_plugins.synthetic.espeak import EspeakSynthesiser, Voice
from wavcube_plugins.synthetic.speech import SILENCE, Speech

# Peak of every utterance, and the silence left around the words, in seconds.
_PEAK = 0.25
_EDGE = 0.08


@dataclass(frozen=True)
class Speaker:
    """A voice with a name and the sentences it says."""

    name: str
    voice: Voice
    sentences: tuple[str, ...]


def _speaker(name: str, voice: str, rate: int, pitch: int, pitch_range: int, sentences: str) -> Speaker:
    lines = tuple(line.strip() for line in sentences.strip().splitlines())
    return Speaker(name, Voice.parse(voice, rate=rate, pitch=pitch, pitch_range=pitch_range), lines)


SPEAKERS = (
    _speaker(
        "adam",
        *("en-us+adam", 185, 48, 50),
        """
        The blue bus stopped right outside the bakery.
        Please fold these towels and put them away.
        My youngest cousin is learning to juggle oranges.
        A thick fog rolled in across the harbour.
        Who left the garage door open all night?
        We measured the shelf twice before cutting it.
        The judge thanked everyone for their patience.
        There is just enough soup for two people.
        He whistled while he washed the muddy boots.
        Our train leaves at ten past three.
        That yellow kite is caught in the elm tree.
        She chose a quiet room above the cafe.
        """,
    ),
    _speaker(
        "beth",
        *("en-gb+f2", 180, 50, 55),
        """
        Could you pass me the sharp scissors?
        The puppy chewed through both of my slippers.
        We usually have toast and jam on Fridays.
        A narrow path leads down to the old mill.
        His voice shook as he read out the letter.
        They bought a huge jar of pickled onions.
        Thunder rumbled behind the distant hills.
        I would rather walk than wait for a taxi.
        The museum is closed on the first of May.
        Every child got a ribbon and a sticker.
        Put the ladder back behind the shed.
        Nobody noticed the tiny scratch on the glass.
        """,
    ),
    _speaker(
        "callum",
        *("en-gb-scotland+m1", 165, 40, 60),
        """
        The ferry was an hour late this morning.
        Warm rain fell softly on the garden wall.
        She keeps her savings in a biscuit tin.
        It takes a fair bit of courage to say no.
        The sheep were huddled beneath the bridge.
        You should hear him play the fiddle.
        Three cheers for the girls who won the match.
        I forgot to charge my phone again.
        Gold leaves drifted over the empty road.
        The shop on the corner sells fresh trout.
        Bring a jumper, for the evenings are chilly.
        We sang all the way to the village.
        """,
    ),
    _speaker(
        "daphne",
        *("en-us+f5", 175, 58, 60),
        """
        The nurse drew a smiling face on the cast.
        Our neighbor owns a very noisy parrot.
        Mix the flour with a pinch of salt.
        I found your notebook under the couch.
        That joke was funnier the second time.
        He catches the early flight to Chicago.
        The vase fell but did not break.
        Shall we try the other key instead?
        A robin built its nest above our porch.
        Use both hands when you carry the tray.
        The choir practices every Thursday evening.
        My watch is five minutes slow.
        """,
    ),
    _speaker(
        "edgar",
        *("en-gb-x-rp+m3", 170, 20, 45),
        """
        The old clock strikes twice at noon.
        One must never rush a good pot of tea.
        The farmer sold his last horse in June.
        Kindly leave your umbrella by the door.
        She has a remarkable memory for faces.
        Both teams played rather badly today.
        The engine coughed and then fell silent.
        I was hoping to finish this chapter first.
        Fetch the doctor as quickly as you can.
        The lawn needs mowing before the party.
        He brushed the dust from his jacket.
        What a pleasure it is to see you here.
        """,
    ),
    _speaker(
        "fiona",
        *("en-gb-x-gbclan+Annie", 165, 50, 50),
        """
        The kettle is nearly boiling, love.
        I have lost my gloves on the bus again.
        Come over and watch the match with us.
        Our Jack has grown three inches this year.
        The market sells cheap cherries in July.
        There were puddles all along the lane.
        Save me a chair near the window.
        She painted the kitchen a lovely blue.
        He just laughed and shook his head.
        You will need thicker socks than those.
        The baby has finally gone to sleep.
        Give that poor dog a bath, would you?
        """,
    ),
    _speaker(
        "gloria",
        *("en-029+f4", 170, 35, 70),
        """
        The sea is calm and clear this morning.
        Mango juice is sweeter than lime juice.
        Everybody in the square began to dance.
        My grandmother cooks rice with coconut.
        The little boat rocked on the waves.
        Please hang these curtains before lunch.
        A green lizard sat upon the fence.
        He sells fresh fish near the beach.
        We shared one umbrella in the storm.
        The children are playing cricket outside.
        Her earrings jingle when she walks.
        Tomorrow should be hot and sunny.
        """,
    ),
    _speaker(
        "harvey",
        *("en-us-nyc+m7", 175, 55, 65),
        """
        You cannot park that truck over here.
        Two coffees and a bagel with cheese.
        The subway was packed all the way home.
        I know a guy who can fix your watch.
        Take the stairs, the elevator is broken.
        They tore down the theater last year.
        My brother roots for the visiting team.
        Call me back when the check arrives.
        That pizza was worth the long drive.
        Somebody turn off that awful noise.
        The tailor shortened both of the sleeves.
        We got front row seats for the show.
        """,
    ),
    _speaker(
        "iris",
        *("en-gb-x-gbcwmd+steph", 170, 55, 50),
        """
        The canal froze over twice last winter.
        I will have chips and a cup of tea.
        Mind your step on those wet tiles.
        The factory makes springs and hinges.
        Dad is always fixing something in the yard.
        She wore a purple coat and yellow boots.
        We could smell fresh bread from the street.
        The bridge was built by local people.
        Change trains at the second station.
        He never could resist a bargain.
        That fudge is much too sugary for me.
        They waved until the coach turned left.
        """,
    ),
    _speaker(
        "junie",
        *("en-us+anika", 140, 60, 70),
        """
        Can we go to the zoo on Sunday?
        My favorite animal is the giraffe.
        I drew a picture of a purple dragon.
        Look how high this swing can go!
        The teacher read us a book about whales.
        I want to build a bigger castle.
        There is a frog in the bathtub!
        My tooth is loose, but it does not hurt.
        We planted beans in little paper cups.
        Do fish ever get thirsty, do you think?
        Grandpa showed me how to tie my shoes.
        The moon followed our car the whole way.
        """,
    ),
)


def say(synthesiser: EspeakSynthesiser, speaker: Speaker, number: int) -> tuple[Tensor, Speech]:
    """Say one of a speaker's sentences.

    Returns:
        The waveform (T,) at 16 kHz as it is in the package, and the speech it was cut from.
    """
    speech = synthesiser.speak(speaker.sentences[number], speaker.voice)
    edge = int(_EDGE * speech.sample_rate)
    start = int(speech.words[0].start * speech.sample_rate)
    end = int(speech.words[-1].end * speech.sample_rate)
    waveform = speech.waveform[max(start - edge, 0) : end + edge]
    return waveform * (_PEAK / float(waveform.abs().max())), speech


def make(folder: Path) -> list[tuple[str, ...]]:
    """Write all utterances and their transcripts into a folder, and return the transcripts' rows."""
    rows = []
    with EspeakSynthesiser(sample_rate=SAMPLE_RATE) as synthesiser:
        for speaker in SPEAKERS:
            for number, sentence in enumerate(speaker.sentences):
                waveform, speech = say(synthesiser, speaker, number)
                name = f"{speaker.name}_{number + 1:02d}.flac"
                with atomic_path(folder / name) as path:
                    soundfile.write(path, waveform.numpy(), SAMPLE_RATE, subtype="PCM_16", compression_level=1.0)
                phones = " ".join(phone.label for phone in speech.phones if phone.label != SILENCE)
                rows.append((name, speaker.name, f"{len(waveform) / SAMPLE_RATE:.2f}", sentence, phones))
    with atomic_path(folder / TRANSCRIPTS) as path:
        path.write_text("".join("\t".join(row) + "\n" for row in [COLUMNS, *rows]), encoding="utf-8")
    return rows


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m wavcube_plugins.synthetic.make_speech", description="Synthesise the package's speech."
    )
    parser.add_argument("--out", type=Path, default=FOLDER, help="the folder to write (default: the package's)")
    folder = parser.parse_args(argv).out
    try:
        rows = make(folder)
    except ImportError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 1
    size = sum(path.stat().st_size for path in folder.iterdir())
    seconds = sum(float(row[2]) for row in rows)
    print(f"{len(rows)} utterances of {len(SPEAKERS)} speakers, {seconds:.0f} s, {size / 1e6:.2f} MB in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
