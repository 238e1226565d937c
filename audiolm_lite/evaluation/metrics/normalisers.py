"""Text normalisers of transcripts, chosen by name and by the language of each row."""

import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import cache

NORMALISERS = ("whisper_english", "basic", "none", "auto", "whisper_basic", "open_asr", "open_asr_2025")
# Normalisers with rules for English. They follow "basic" in other languages.
_ENGLISH = ("auto", "whisper_english", "open_asr", "open_asr_2025")
# Blocks of scripts that are written without spaces between words.
_UNSPACED = (
    (0x0E00, 0x0FFF, "Thai, Lao, Tibetan"),
    (0x1000, 0x109F, "Myanmar"),
    (0x1780, 0x17FF, "Khmer"),
    (0x1950, 0x19DF, "Tai Le, New Tai Lue"),
    (0x1A20, 0x1AAF, "Tai Tham"),
    (0x2E80, 0x2FDF, "Han radicals"),
    (0x3005, 0x3007, "Han"),
    (0x3040, 0x312F, "Hiragana, Katakana, Bopomofo"),
    (0x31A0, 0x31FF, "Bopomofo, Katakana"),
    (0x3400, 0x4DBF, "Han"),
    (0x4E00, 0xA4CF, "Han, Yi"),
    (0xA9E0, 0xA9FF, "Myanmar"),
    (0xAA60, 0xAADF, "Myanmar, Tai Viet"),
    (0xF900, 0xFAFF, "Han"),
    (0xFF66, 0xFF9F, "Katakana"),
    (0x1B000, 0x1B16F, "Kana"),
    (0x20000, 0x3FFFF, "Han"),
)
_UNSPACED_LANGUAGES = frozenset("zh zho cmn yue wuu nan hak ja jpn th tha lo lao km khm my mya bo bod dz dzo".split())
# Hesitations that the Open ASR Leaderboard drops since 2026, in any length ("uhh", "mmm").
_HESITATIONS = (
    r"ah-ha|a+h+(?:a+|m*)|e+(?:h+m*|m+|r+m*)|h+(?:[aeu]+h+|m+)|m+(?:m+|h+m*)|t+s+k+|u+(?:g+h+|h+m*|m+h*)|u+h+u+[hm]*"
    r"|ahem|eheh|ehehe|ehr|hmmph|hum|hunh|mhum|mmkay"
)


def base_language(code: str) -> str:
    """Return the first part of a language code in lower case; the English ones are all "en".

    Examples
    --------
    >>> base_language("pt-BR"), base_language("eng"), base_language("zh_TW")
    ('pt', 'en', 'zh')
    """
    base = re.split(r"[-_]", code.strip().lower())[0]
    return "en" if base in ("eng", "english") else base


def is_english(language: str, text: str) -> bool:
    """Whether the rules for English apply: the language is English, and the text has Latin letters or no letters.

    "en" is the default of rows without a language, so a text in another script is not taken for English.

    Examples
    --------
    >>> is_english("en-GB", "Good morning"), is_english("de", "Guten Morgen"), is_english("en", "доброе утро")
    (True, False, False)
    """
    letters = [c for c in text if c.isalpha()]
    latin = any("LATIN" in unicodedata.name(c, "") for c in letters)
    return base_language(language) == "en" and (latin or not letters)


def resolve_normaliser(name: str, language: str, text: str) -> str:
    """Return the normaliser that a row gets: that of this name, or "basic" where its rules are for English only.

    Examples
    --------
    >>> resolve_normaliser("auto", "en", "good morning"), resolve_normaliser("whisper_english", "de", "guten Morgen")
    ('whisper_english', 'basic')
    """
    if name in _ENGLISH:
        if not is_english(language, text):
            return "basic"
        return "whisper_english" if name == "auto" else name
    return name


@cache
def make_normaliser(name: str, language: str = "en") -> Callable[[str], str]:
    """Return the text normaliser of that name.

    Parameters
    ----------
    name : str
        Scores under different normalisers cannot be compared. All results are in Unicode form NFC, so that a syllable
        or an accented letter is one character.

        - "auto": "whisper_english" for English, "basic" for other languages.
        - "whisper_english": Whisper's English rules (spelling, contractions, numbers; Radford et al. 2022, appendix C).
        - "basic": for any language: lower case, compatible characters unified, no punctuation, symbols and brackets.
          Vowel signs, tone marks and accents are kept.
        - "whisper_basic": Whisper's published rules for other languages. They split words at vowel signs.
        - "open_asr": the Open ASR Leaderboard's English rules of 2026: also drops more hesitations, joins spelled
          letters ("b b c"), and reads 's as "is" after pronouns only; `score_asr` then joins compounds. Without the
          leaderboard's lists of names and compounds and its rules for clock times and "oh".
        - "open_asr_2025": its rules before, which are "whisper_english".
        - "none": the text as it is.
    language : str
        Code of the text's language. For normalisers with English rules, another language gives "basic".

    Raises
    ------
    ValueError
        Unknown name.

    Examples
    --------
    >>> make_normaliser("basic")("Hello, World!")
    'hello world'
    >>> make_normaliser("auto", "hi")("नमस्ते, दुनिया!")
    'नमस्ते दुनिया'
    >>> make_normaliser("open_asr")("Uhh, the B. B. C. said it's John's")
    'the bbc said it is john s'
    """
    if name not in NORMALISERS:
        raise ValueError(f'normaliser "{name}" is unknown; choose one of {", ".join(NORMALISERS)}')
    if name == "none":
        return lambda text: unicodedata.normalize("NFC", text)
    name = resolve_normaliser(name, language, "")
    if name == "basic":
        return lambda text: _basic(text, base_language(language))
    from whisper.normalizers import BasicTextNormalizer, EnglishTextNormalizer

    rules = BasicTextNormalizer() if name == "whisper_basic" else EnglishTextNormalizer()
    if name == "open_asr":
        rules.ignore_patterns = rf"\b(?:{_HESITATIONS})\b"
        pronouns = "it|he|she|what|that|who|here|there|how|when|where|why|this"
        changed = {r"'s\b": (rf"\b({pronouns})'s\b", r"\1 is")}
        rules.replacers = dict(changed.get(pattern, (pattern, text)) for pattern, text in rules.replacers.items())
        return lambda text: _join_spelled(_clean(rules(text)))
    return lambda text: _clean(rules(text))


def _clean(text: str) -> str:
    return unicodedata.normalize("NFC", " ".join(text.split()))


def _basic(text: str, language: str) -> str:
    """Lower case without punctuation; marks that follow a letter are kept, as are all letters and digits."""
    text = unicodedata.normalize("NFKC", text)
    text = text.replace("\u0e4d\u0e32", "\u0e33").replace("\u0ecd\u0eb2", "\u0eb3")  # am: NFKC takes the vowel apart
    if language in ("tr", "tur", "az", "aze"):
        text = text.replace("I", "ı").replace("İ", "i")
    text = unicodedata.normalize("NFC", text.lower().replace("i\u0307", "i"))
    text = re.sub(r"[<\[][^>\]]*[>\]]|\([^)]+\)", "", text)
    kept: list[str] = []
    for character in text:
        kind = unicodedata.category(character)
        if kind[0] in "SP" or character == "\u02bc":  # the letter apostrophe, which others write as a mark
            kept.append(" ")
        elif kind[0] == "M":
            if kept and kept[-1] != " " and not "\ufe00" <= character <= "\ufe0f":  # selects a variant of a symbol
                kept.append(character)
        elif kind != "Cf" and character != "\u0640":  # joiners, marks of direction; the tatweel stretches a word
            kept.append(character)
    return _clean("".join(kept))


def _join_spelled(text: str) -> str:
    """Join runs of single letters or digits; runs of two stay if one of them is "a" or "i"."""
    words: list[str] = []
    run: list[str] = []
    for word in [*text.split(), ""]:
        if len(word) == 1 and word.isalnum():
            run.append(word)
            continue
        joined = len(run) >= (3 if {"a", "i"} & set(run) else 2)
        words += ["".join(run)] if joined else run
        run = []
        words.append(word)
    return " ".join(words[:-1])


def is_unspaced(character: str) -> bool:
    """Whether a character is of a script that does not separate words by spaces.

    Examples
    --------
    >>> is_unspaced("犬"), is_unspaced("개"), is_unspaced("d")
    (True, False, False)
    """
    return any(first <= ord(character) <= last for first, last, _ in _UNSPACED)


def has_word_spaces(texts: Iterable[str], language: str) -> bool:
    """Whether texts are in a script that separates words by spaces: most of their letters, or else the language.

    Examples
    --------
    >>> has_word_spaces(["สวัสดีครับ"], "th"), has_word_spaces(["안녕하세요"], "ko"), has_word_spaces([""], "ja")
    (False, True, False)
    """
    letters = unspaced = 0
    for character in "".join(texts):
        if character.isalpha():
            letters += 1
            unspaced += is_unspaced(character)
    return 2 * unspaced <= letters if letters else base_language(language) not in _UNSPACED_LANGUAGES
