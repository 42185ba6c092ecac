"""Generated captions that are hard to tokenise, with the tokens of coco-caption's own tokeniser.

    python -m tests.helpers.hard_captions [Flickr8k_text.zip]

runs Stanford's PTBTokenizer 3.4.1 from pycocoevalcap (only this needs Java), writes
`hard_captions.tsv` beside this file, and prints the digest of the tokens of a text archive.
"""

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import pycocoevalcap

from pipeline.sources.captions import read_captions

TABLE = Path(__file__).with_suffix(".tsv")
JAR = Path(pycocoevalcap.__path__[0]) / "tokenizer/stanford-corenlp-3.4.1.jar"
# coco-caption's list as it is meant: its -LRB- never matches, since tokens are lower case.
DROPPED = frozenset("'' ' `` ` . ? ! , : - -- ... ; -lrb- -rrb- -lcb- -rcb- -lsb- -rsb-".split())

FRAMES = ("{}", "A dog and {} on grass .", "{}, she said.", "a man with {}.")
PIECES = """
'stop now' | "stop now" | “stop now” | ‘stop now’ | ``stop'' | `stop' | 'a' | '' | ‘A’ | "No!"
"Go," | the "big" dog | dogs' | dogs’ | dog's | dog’s | James's | it's | it’s | its' | DOG'S
she'll | she’ll | I'm | we're | they've | he'd | who's | don't | don’t | DON'T | dont | can't
cannot | Cannot | won't | isn't | shouldn't've | could've | ain't | n't | gonna | gotta | wanna
lemme | gimme | dunno | kinda | wannabe | 'tis | 'twas | ’tis | 'em | ’em | 'til | 'till | 'cause
'bout | rock 'n' roll | rock'n'roll | rock n' roll | slip 'n slide | o'clock | O'Neil | O’Neil
d'Angelo | D’Angelo | l'eau | qu'il | aujourd'hui | ma'am | y'all | ol' dog | cap'n | ne'er
Hawai'i | Hallowe'en | walkin' dog | runnin' | jack-o'-lantern | '90s | ’90s | 90's | 1990s
1990's | the '60 | class of '05 | 5' tall | 5'10" | 6 ft. | 2 lbs. | 6ft. | 3-ft. | 5 in. | no. 5
No. 5 | no.5 | no. five | No. | nos. 5 | #5 | # 5 | p. 5 | pp. 5-6 | vol. 5 | fig. 3 | Jan. 5
Sept. 11 | Sat. | Mon. | 3.5 | 1,000 | 1,000.50 | .5 | -5 | +5 | 5-10 | 1/2 | 3/4 | 1 1/2 | ½
5% | 5 % | $5 | $5.00 | US$5 | £5 | €5 | 5¢ | ¥5 | 5th | 2nd | 5lbs | 5x10 | 4x4 | 3D | 3-D
2-year-old | two-year-old | 10:30 | 10:30am | 5pm | 5 p.m. | 5p.m. | 12/25/2010 | 2010-12-25
555-1234 | 1-800-555-1234 | 24/7 | 50/50 | 16:9 | 1080p | mp3 | F-16 | B-52 | 747's | size 10.5
AT&T | at&t | R&B | H&M's | A&B&C | b&w | B & W | black&white | AT&amp;T | dogs &amp; cats
&quot;hi&quot; | a &lt; b | M&M's | Mr. Smith | Mr Smith | Mr.Smith | Mrs. | Ms. | Dr. Who
St. Louis | on Main St. | the st. | Ave. | Blvd. | Mt. Hood | Sgt. Pepper | Jr. | Sr. | Prof.
Rev. | Gov. | Capt. | Lt. | Col. | Inc. | Co. | Corp. | Ltd. | Dept. | etc. | etc.) | vs. | vs
approx. | messrs. | assoc. | U.S. | U.S.A. | U.S | u.s. | U.S.-based | U.K.'s | D.C. | N.Y.
L.A. | e.g. | i.e. | a.k.a. | a.m. | Ph.D. | Ph.D | PhD | M.B.A. | J. Smith | J.K. Rowling
J.Smith | A.C. Milan | plan b. | plan B. The dog | plan B. the dog | vitamin C. | R.V.
S.C.U.B.A. | wait..what | wait...what | wait....what | wait . . . what | wait… what | wait..
wait... | oh!! | oh!!! | what?! | what?? | !? | ,, | hello.world | hello,world | hello;world
hello:world | hello!world | hello?world | man.A dog | dogs,2 cats | dog., cat | dog.; cat
www.foo.com | foo.com | foo.com/bar | http://foo.com/a?b=1 | https://foo.org/ | foo.co.uk
foo.jpg | IMG_001.jpg | me@foo.com | a@b | #tbt | #no_filter | @bob | @ bob | RT | a_b
snake_case | _it_ | *it* | **it** | ~5 | 5+5 | a+b | A+ | C++ | C# | a=b | ^ | a\\b | t-shirt
T-shirt | T-Shirts | t- shirt | t -shirt | x-ray | mother-in-law | mid-air | - | -- | --- | ----
----- | – | — | a–b | a—b | a--b | well-known, | half‐dozen | non‑stop | and/or | his/her
man / woman | man/ woman | w/ | w/o | w/dog | c/o | +/- | (brown) | ( brown ) | dog(brown)cat
(a dog). | [brown] | {brown} | <b> | </b> | <br/> | < b > | <3 | <-- | :) | :-) | ;) | :( | =)
:D | :P | :d | :/ | xD | ^_^ | (: | -_- | :'( | café | naïve | Zoë | piñata | über | smørrebrød
façade | ÉCOLE | Straße | Ein Café | привет мир | שלום | ελλάδα | ไทย | tiếng Việt | 你好。
你好 世界 | こんにちは、世界 | 한국어 | مرحبا، كيف؟ | हिन्दी। | ¿que? | ¡hola! | «bonjour»
« bonjour » | „hallo“ | ‚hallo‘ | ‹a› | 。 | 「a」 | 😀 | dog😀cat | ❤ | ❤️ | ☺ | ★ | ✓ | → | ™
Foo™ | © | ® | ° | 5°C | 90° | • dog | · | § | ² | m² | № 5 | ₹5
"""
JOINS = """ . .. ... , ; : ! ? - -- / & + _ = ' " ( ) * ’ ” — … """.split()
JOINED = ("two dogs{}one cat", "A child{}The dogs", "5{}6", "U.S{}A", "it's{}b")

# Captions for which our tokens differ from PTBTokenizer's on purpose, and why.
DIFFERENT = {
    "call (555) 555-1234": "it recognises telephone numbers and keeps their brackets",
    '<img src="x">': "it keeps a tag with spaces as one token",
    "she's gonna's": "it splits these words only at the end of a word",
    "ಕನ್ನಡ": "its Unicode tables are of 2012: it splits words of newer or rarer scripts",
    "a man'The dogs": "it finds n't in a typing error",
    "cafe\N{COMBINING ACUTE ACCENT}": "it leaves letters decomposed; ours are composed",
    "he said “«hi»”": "its tokens of several kinds of quotes in a row are arbitrary",
}


def hard_captions() -> list[str]:
    """Return all captions, without duplicates."""
    pieces = [piece.strip() for line in PIECES.strip().splitlines() for piece in line.split(" | ")]
    captions = [frame.format(piece) for piece in pieces for frame in FRAMES]
    captions += [frame.format(mark) for mark in JOINS for frame in JOINED]
    return list(dict.fromkeys([*captions, *DIFFERENT]))


def stanford_tokens(captions: Sequence[str]) -> list[list[str]]:
    """Return coco-caption's tokens, without the brackets that it means to drop."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".txt") as file:
        # A line of its own after each caption: the tokeniser looks beyond the line's end.
        file.write("".join(f"{caption}\nx\n" for caption in captions))
        file.flush()
        command = ["java", "-cp", str(JAR), "edu.stanford.nlp.process.PTBTokenizer"]
        command += ["-preserveLines", "-lowerCase", file.name]
        done = subprocess.run(command, check=True, capture_output=True, encoding="utf-8")
    lines = done.stdout.split("\n")[: 2 * len(captions) : 2]
    return [[token for token in line.split() if token not in DROPPED] for line in lines]


def digest(captions: Iterable[Sequence[str]]) -> str:
    """Return the digest of tokens, one line per caption."""
    return hashlib.sha256("\n".join(map(" ".join, captions)).encode()).hexdigest()


def read_table() -> list[tuple[str, list[str]]]:
    """Return each caption with its tokens."""
    lines = TABLE.read_text(encoding="utf-8").split("\n")[:-1]
    return [(caption, tokens.split()) for caption, tokens in (line.split("\t") for line in lines)]


def main() -> None:
    captions = hard_captions()
    rows = zip(captions, map(" ".join, stanford_tokens(captions)), strict=True)
    TABLE.write_text("".join(f"{caption}\t{tokens}\n" for caption, tokens in rows), "utf-8")
    print(f"{TABLE.name}: {len(captions)} captions")
    for path in map(Path, sys.argv[1:]):
        archive = read_captions(path)
        captions = [caption for captions in archive.captions.values() for caption in captions]
        print(f"{path.name}: {len(captions)} captions, {digest(stanford_tokens(captions))}")


if __name__ == "__main__":
    main()
