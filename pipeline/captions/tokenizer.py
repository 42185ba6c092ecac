"""The project's only tokeniser: coco-caption's conventions, without its Java.

coco-caption splits captions by the Penn Treebank's rules as implemented in Stanford's PTBTokenizer
3.4.1 (`man's` -> `man 's`, `T-shirt` stays whole), lower-cases the tokens and drops punctuation.
The rules here were derived from that program's output. The tokens are the same for all of
Flickr8k's 40,460 captions and for nearly all of the hard ones in `tests/helpers/hard_captions.py`;
docs/metrics.md lists the differences.
"""

import logging
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache

import regex

log = logging.getLogger(__name__)

# Recorded with every score: scores of different tokens cannot be compared.
TOKENIZER = "ptb-lower-nopunct-3"

# coco-caption's list, and brackets, which it means to drop but misses after lower-casing.
PUNCTUATION = frozenset(
    ["''", "'", "``", "`", '"', "(", ")", "[", "]", "{", "}", *".?!,:;-", "--", "..."]
)
# Other scripts' marks, which coco-caption's list does not have: ¿ ، । 。
FOREIGN_PUNCTUATION = regex.compile(r"[\p{P}--\p{ASCII}]+", regex.V1)
_ENTITIES = {"amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'", "nbsp": " "}
_ENTITY = regex.compile(rf"(?i)&({'|'.join(_ENTITIES)});")

# The full stop is part of these words; of a few more, before a number.
_ABBREVIATIONS = """
    adj adm adv al ala alex apr ariz asst assn assoc atty attys aug ave bhd bldg blvd brig bros
    calif capt cf cie cmdr co col colo comdr conn corp cos cpl ct dak dec dept det dr drs elec ens
    esq est etc ext feb fla fri ft ga gen gov govs hon inc ind insp intl invt jan jos jr jul jun kan
    kans ky lt ltd maj mar md messrs mfg mich minn mlle mme mo mon mont mr mrs ms msgr mt mtg natl
    neb nev nov oct okla penn pfc ph plc ppte ppty pres prof profs pte ptes pty ptys pvt rd rep reps
    rev rt sen sens sep sept seq sfc sgt spc sq sr st ste supt sys tel tenn thu thurs tue tues univ
    va vs vt wed wis wisc wm wyo""".split()
_BEFORE_NUMBERS = "art ca fig figs no nos op pp prop".split()
# After a single letter these begin a sentence: "plan B. The dog" has no token "b.".
_SENTENCE_STARTS = """
    A About According Additionally After An As At But He Her Here However If In It Last Many More
    Now Once One Other Our She Since So Some Such That The Their Then There These They This We What
    When While Yet You""".split()
_HALVES = {word: (word[:3], word[3:]) for word in "cannot gimme gonna gotta lemme wanna".split()}

# A letter; a letter or digit; a digit; an apostrophe; a character inside a URL, and at its end.
_L, _W, _N, _Q = r"[\p{L}\p{M}]", r"[\p{L}\p{M}\p{Nd}\xad]", r"\p{Nd}", "['’]"
_P, _E = r'[^\s"<>|()]', r"""[^\s"<>|().!?,;:'{}\-]"""
# All rules are tried at each position; the longest match is the token.
_RULES = [
    # URLs, e-mail addresses, handles, tags.
    rf"(?i:https?://){_P}*{_E}",
    rf"(?i:(?:{_W}+[.\-_])*{_W}+\.(?:com|net|org|edu))(?:/{_P}*{_E})?",
    r"""[^\s"<>|()@“‘‹«]+@[^\s"<>|()@.]+(?:\.[^\s"<>|()@.]+)*""",
    rf"@{_L}(?:{_W}|_)*|\#{_L}+",
    r"</?[A-Za-z!][^\s<>]*>",
    # Numbers: 3.5 1,000 10:30 -5.
    rf"[+\-]?{_N}+(?:[.,:]{_N}+)*|[+\-]?(?:[.,:]{_N}+)+",
    # Words: t-shirt man/woman 2nd; hello.world wow!great; AT&T US$; c# c++.
    rf"{_W}+(?:[\-_/‐‑]{_W}+)*(?:\.(?=[,;:]))?",
    rf"{_L}{_W}*(?:\.{_L}{_W}*)+",
    rf"{_L}+(?:[.!?]{_L}+)+",
    r"[A-Z]+(?:[&+][A-Z]+)+|[A-Z]+\$",
    r"(?i:[cf]\#|c\+\+)",
    # Kept full stops: u.s. u.s.-based ph.d. mr. no. 5.
    rf"(?:{_L}\.){{2,}}(?:-{_W}+)*|{_L}(?:\.{_L})+(?:-{_W}+)+",
    rf"{_L}\.(?!\s+(?=\p{{Lu}})(?i:{'|'.join(_SENTENCE_STARTS)})(?!\S))",
    rf"(?i:ph\.d|{'|'.join(_ABBREVIATIONS)})\.",
    rf"(?i:{'|'.join(_BEFORE_NUMBERS)})\.(?=\s*{_N})",
    # Leading apostrophes: 's 'll 'em 'n' '90s 't(is). A curly one may be an opening quote too;
    # the rules do not try to tell.
    rf"(?i:'(?:[sdm]|ll|re|ve)(?!{_L})|’(?:[sdm]|ll|re|ve)|{_Q}(?:em|till?|cause)(?!{_L}))",
    rf"(?i:{_Q}n{_Q}|{_Q}n(?!\S)|(?<!{_N}){_Q}{_N}{_N}(?:s(?!{_W})|(?!\S))|'t(?=(?:is|was)(?!{_L})))",
    # Inner apostrophes: don't (split below) d'angelo ma'am y'all ol' o'clock.
    rf"(?i:{_L}*n{_Q}t(?!{_W}))",
    rf"(?:[dlno]|[A-HJ-XZ]){_Q}(?!(?i:ll|re|ve)(?!{_L})){_L}{_L}+",
    rf"{_L}+[aeiouyAEIOUY]{_Q}(?!(?i:ll|re|ve|em|till?|[sdmn])(?!{_L}))[aeiouA-Z]{_L}*",
    rf"(?i:[djl]{_Q}|y{_Q}(?={_L})|ol{_Q}|cap{_Q}n|o{_Q}clock|e{_Q}er)",
    # Emoticons :-) ^_^; a run of punctuation; any other character.
    rf"(?i:[:;=]['\-]?[()dp](?!{_L})|\^_\^|-_-)",
    r"\.{3,}|@+|-{2,4}(?!-)|-{5,}|[!?]+|'+|`+|\*+|\#+|_+|<+|>+|\S",
]
_LEXER = [regex.compile(rule, regex.V1) for rule in _RULES]
_PLAIN_WORD = regex.compile(r"\p{L}+(?!\S)")  # a fast path: all rules agree on these
_SPACE = regex.compile(r" +")

_CONTRACTION = regex.compile(r"(.*)(n't|n’t)|(’(?:[sdm]|ll|re|ve))")
_REPLACEMENTS = {
    **dict.fromkeys("“”«»‘’‛‹›", "'"),
    **dict.fromkeys("–—―", "--"),
    **{"…": "...", "½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"},
    **{"€": "$", "£": "#", "¢": "cents"},
}
# Emoji and other symbols: PTBTokenizer deletes characters that it does not know.
_UNKNOWN = regex.compile(r"[\p{M}₡-⃀]+|[[\u2c00-\U0010ffff]--[\p{L}\p{Nd}、。〒・！-￦]]", regex.V1)


# A zero-width (non-)joiner inside a word only changes how its letters are drawn.
_JOINER = regex.compile(r"(?<=[\p{L}\p{M}])[\u200c\u200d](?=\p{L})")
# These read what follows the next space: `plan B. The dog`, `no. 5`.
_NEEDS_CONTEXT = regex.compile(r"(?<!\p{L})\p{L}{1,4}\.$")


def tokenize(caption: str) -> list[str]:
    """Split a caption into lower-case tokens without punctuation; may be empty.

    Words of any script that puts spaces between them are tokens; punctuation is Unicode's.
    """
    text = unicodedata.normalize("NFC", caption).replace("\N{VARIATION SELECTOR-16}", "")
    text = _ENTITY.sub(lambda entity: _ENTITIES[entity[1].lower()], text)
    if not text.isprintable():  # odd spaces, control and invisible characters
        text = _JOINER.sub("", text)
        text = "".join(char if char.isprintable() or char == "\xad" else " " for char in text)
    chunks = text.split()
    if any(chunk[-1] == "." and _NEEDS_CONTEXT.search(chunk) for chunk in chunks[:-1]):
        chunks = [text]
    return [token for chunk in chunks for token in _tokens(chunk)]


# No rule crosses a space, and most words come again: a hundred times as fast.
@lru_cache(maxsize=1 << 16)
def _tokens(text: str) -> tuple[str, ...]:
    return tuple(token for token in _lex(text) if not _is_punctuation(token))


def _is_punctuation(token: str) -> bool:
    return token in PUNCTUATION or FOREIGN_PUNCTUATION.fullmatch(token) is not None


def _lex(text: str) -> Iterator[str]:
    position = 0
    while position < len(text):
        if space := _SPACE.match(text, position):
            position = space.end()
            continue
        if plain := _PLAIN_WORD.match(text, position):
            end = plain.end()
        else:
            end = max(match.end() for rule in _LEXER if (match := rule.match(text, position)))
        yield from _normalize(text[position:end].lower())
        position = end


def _normalize(token: str) -> Iterator[str]:
    """Yield the final form of a token: nothing, one token, or the two parts of a contraction."""
    token = token.replace("\xad", "")  # a soft hyphen
    if not token:
        return
    if token in _HALVES:
        yield from _HALVES[token]
    elif contraction := _CONTRACTION.fullmatch(token):
        yield from (part.replace("’", "'") for part in contraction.groups() if part)
    elif set(token) == {"."} or (set(token) == {"-"} and len(token) in (2, 3, 4)):
        yield "."
    elif len(token) > 1 and set(token) <= set(":;='-()"):  # an emoticon
        yield token.replace("(", "-lrb-").replace(")", "-rrb-")
    elif token in _REPLACEMENTS:
        yield _REPLACEMENTS[token]
    elif not _UNKNOWN.fullmatch(token):
        yield token


# Scripts without spaces between words: Thai, Lao, Burmese, Khmer, Japanese, Chinese.
_UNSPACED = regex.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]+"
)
_MAX_MEAN_LETTERS = 6.0  # per token of these scripts: words have fewer letters, sentences more


class UnspacedWords:
    """Finds captions of such scripts whose words were not separated by spaces first."""

    def __init__(self) -> None:
        self._words = self._letters = 0

    def add(self, tokens: Sequence[str]) -> None:
        for parts in filter(None, map(_UNSPACED.findall, tokens)):
            self._words += 1
            self._letters += len("".join(parts))

    def warn(self) -> None:
        """Warn if tokens look like whole sentences."""
        if self._letters > _MAX_MEAN_LETTERS * self._words:
            message = "%d words without spaces have %.1f letters on average, so they are whole "
            message += "sentences; put spaces between the words first (see docs/data.md)"
            log.warning(message, self._words, self._letters / self._words)
