"""Penn Treebank tokens of captions, as pycocoevalcap makes them, without Java.

Provenance: pycocoevalcap (github.com/salaniz/pycocoevalcap) calls Stanford's PTBTokenizer 3.4.1 with
`-preserveLines -lowerCase` and drops punctuation tokens. This module gives the same tokens; its rules were
written and checked against that program's output (tests/evaluation/captions/test_tokenizer.py asks it again where Java
is).

How it works: at every position all rules are tried and the longest match wins, the first rule on a tie. A
rule's group 1 is the token; what it matches after the group is context: it counts as length and is read
again. Characters that no rule knows (emoji, for one) are dropped, as there.

Two things differ on purpose. A character that ends a line (CR, VT, FF, U+2028, U+2029) inside a caption is a
space here; there it splits the caption in two, and every later caption is then given to the wrong image. And a
tag ends with its caption here; there an open quote inside a tag, as in <a href="x, goes on into the next captions.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lavis.evaluation.captions import ptb_tables as tables

PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
_NBSP = "\u00a0"


class _Rule(NamedTuple):
    starts: str  # the characters that it may begin with; _L, _D and _ANY stand for letters, digits and any
    pattern: re.Pattern[str]
    rewrite: Callable[[str], str] | None


def tokenize(caption: str) -> list[str]:
    """Caption -> lower-case tokens without punctuation. A token holds no plain space."""
    tokens = _known_tokens(caption)
    if tokens is None:
        tokens = _by_rules(caption, "\n")
    return tokens.split(" ") if tokens else []


def tokenize_captions(captions: Mapping[Any, Sequence[str]]) -> dict[Any, list[str]]:
    """{id: captions} -> {id: tokenised captions, tokens joined by a space}: what pycocoevalcap scores.

    pycocoevalcap tokenises all captions as the lines of one file, and some rules look beyond the end of a
    line: in "vitamin c." the last token keeps its stop unless the next caption begins with "A" or "The"; a
    smiley that ends the last caption is not one. The order of the mapping therefore counts, as there.
    """
    lines = [caption for values in captions.values() for caption in values]
    tokens = [_known_tokens(line) for line in lines]
    found = iter([_by_rules(lines[i], _following(lines, i)) if line is None else line for i, line in enumerate(tokens)])
    return {key: [next(found) for _ in values] for key, values in captions.items()}


def forget() -> None:
    """Empty what is remembered between captions, for measurements."""
    _CHUNKS.clear()
    _by_rules.cache_clear()
    _alone.cache_clear()


def _following(lines: Sequence[str], index: int) -> str:
    """As much of the text after a line as a rule may look at."""
    if index + 1 == len(lines):
        return ""
    if not _OPEN_END.search(lines[index]):
        return "\n"
    rest = "\n".join(_one_line(line) for line in lines[index + 1 : index + 9])
    return "\n" + rest[:64] + ("\n" if index + 9 < len(lines) else "")


def _one_line(caption: str) -> str:
    return re.sub("[\n\r\v\f\u2028\u2029]", " ", caption)


def _known_tokens(caption: str) -> str | None:
    """The tokens of a caption of plain chunks, joined by spaces; None where a rule might look further."""
    tokens = [_CHUNKS[chunk] for chunk in caption.split(" ")]
    return None if None in tokens else " ".join(filter(None, tokens))


@functools.lru_cache(maxsize=1 << 17)
def _by_rules(caption: str, following: str) -> str:
    """One caption -> its tokens joined by spaces; what stands between two spaces is looked up where that is safe."""
    text = _one_line(caption)
    end = len(text)
    text += following
    position, words = 0, []
    while position < end:
        if position == 0 or text[position - 1] == " ":
            stop = text.find(" ", position, end)
            stop = end if stop < 0 else stop
            chunk, known = text[position:stop], _CHUNKS[text[position:stop]]
            last, before_letter = stop == end, text[stop + 1 : stop + 2].isalpha()
            if known is None and (before_letter or (last and following == "\n")) and not _LOOKS_FURTHER.search(chunk):
                known = _alone(chunk, "\n" if last else " x")
            # after a stop another one may follow: ". . ." is one token
            if known is not None and (last or before_letter or not chunk.endswith(".")):
                words.append(known)
                position = stop + 1
                continue
        token, position = _next_token(text, position)
        words.append(token.lower())
    line = " ".join(word for word in words if word)
    return " ".join(word for word in line.rstrip().split(" ") if word not in PUNCTUATION)  # an address may end with a wide space


@functools.lru_cache(maxsize=1 << 17)
def _alone(chunk: str, following: str) -> str:
    """The tokens of a chunk, punctuation too: the same in any caption in which a letter or the end of the line follows.

    What looks beyond the next space looks for a digit ("555 1234", "no. 5") or a stop; but for _LOOKS_FURTHER.
    """
    return " ".join(_lex(chunk, following)).lower()


class _Chunks(dict[str, "str | None"]):
    """What stands between two spaces -> its tokens joined by spaces, of plain chunks; None of others.

    Plain are words, also with hyphens and apostrophes inside, with quotes around them, a comma or a full stop after
    them. No rule that begins in such a chunk looks beyond the next space, but after an abbreviation or one letter
    with a full stop.
    """

    _word = re.compile("([A-Za-z]*)([.,]?)")
    _joined = re.compile("([A-Za-z]+(?:-[A-Za-z]+)*)('s)?,?")
    _plain = re.compile('"?(?:[A-Za-z]+(?:[\'-][A-Za-z]+)*)?"?,?"?')

    def __missing__(self, chunk: str) -> str | None:
        if len(self) >= 1 << 18:
            self.clear()
        self[chunk] = tokens = self._tokens(chunk)
        return tokens

    def _tokens(self, chunk: str) -> str | None:
        word = self._word.fullmatch(chunk)
        if word is not None and word[1].lower() not in _SPLIT_WORDS:
            keeps_stop = word[2] == "." and (word[1].lower() in _ABBREVIATIONS or len(word[1]) == 1)
            return None if keeps_stop else word[1].lower()
        joined = None if word is not None else self._joined.fullmatch(chunk)
        if joined is not None:
            return f"{joined[1].lower()} 's" if joined[2] else joined[1].lower()
        if self._plain.fullmatch(chunk) is None:
            return None
        return " ".join(token.lower() for token in _lex(chunk, " ") if token not in PUNCTUATION)


_CHUNKS = _Chunks()
_SPLIT_WORDS = frozenset(["cannot", "gonna", "gotta", "gimme", "lemme", "wanna"])
_OPEN_END = re.compile(r"[A-Za-z]\.\s*\Z")
_LOOKS_FURTHER = re.compile(r"<|[A-Za-z]\.\s*\Z")  # for the end of a tag, for "The" after "vitamin c."
_ABBREVIATIONS = frozenset(
    word.lower()
    for words in (
        tables.TITLE_ABBREVIATIONS,
        tables.ENDING_ABBREVIATIONS,
        tables.CAPITAL_ABBREVIATIONS,
        tables.NUMBER_ABBREVIATIONS,
        tables.PATTERN_ABBREVIATIONS,
    )
    for word in words
)


def _lex(text: str, following: str = "\n") -> Iterable[str]:
    """All tokens of one line, punctuation included, letters as written; what follows is only looked at."""
    end = len(text)
    text += following
    position = 0
    while position < end:
        token, position = _next_token(text, position)
        if token:
            yield token


def _next_token(text: str, position: int) -> tuple[str, int]:
    """The token at a position, "" for none, and where the next one may begin."""
    best, best_end, best_rule = None, position, None
    for rule in _candidates(text[position]):
        match = rule.pattern.match(text, position)
        if match is not None and match.end() > best_end:
            best, best_end, best_rule = match, match.end(), rule
    if best is None or best_rule is None:
        return "", position + 1
    return best[1] if best_rule.rewrite is None else best_rule.rewrite(best[1]), best.end(1)


@functools.lru_cache(maxsize=4096)
def _candidates(character: str) -> tuple[_Rule, ...]:
    """The rules that can match at a character, in order."""
    kinds = {character, _ANY}
    if re.match(_LETTER_OR_DIGIT, character):
        kinds.add(_D if re.match(_DIGIT, character) else _L)
    return tuple(rule for rule in _rules() if kinds.intersection(rule.starts))


@functools.lru_cache(maxsize=1)
def _rules() -> tuple[_Rule, ...]:
    """Every rule in order of precedence (compiled on first use)."""
    rules = (*_word_rules(), *_address_rules(), *_number_rules(), *_abbreviation_rules(), *_mark_rules())
    return tuple(_Rule(starts, re.compile(pattern, re.ASCII), rewrite) for starts, pattern, rewrite in rules)


# Pieces that several rules share. Patterns are ordered and greedy, so where one alternative is a prefix of
# another the longer stands first, or the alternatives are rules of their own.
_SPACE = "[ \t\u00a0\u2000-\u200a\u3000]"
_SPACE_OR_END = "[ \t\u00a0\u2000-\u200a\u3000\n\u0085]"
_L, _D, _ANY = "\ue000", "\ue001", "\ue002"
_Rules = Iterable[tuple[str, str, Callable[[str], str] | None]]
_ENTITY = r"&[aeiouAEIOU](?:acute|grave|uml);"  # a letter written as an HTML entity
_ALNUM = f"[{tables.ALNUM}]"
_DIGIT = f"[{tables.DIGITS}]"
_PLAIN_LETTER = f"(?:(?!{_DIGIT}){_ALNUM})"
_LETTER_OR_DIGIT = f"(?:[{tables.ALNUM}{tables.MARKS}]|{_ENTITY})"
_LETTER = f"(?:(?!{_DIGIT}){_LETTER_OR_DIGIT})"
_WORD = f"{_LETTER}{_LETTER_OR_DIGIT}*(?:[.!?]{_LETTER}{_LETTER_OR_DIGIT}*)*"
_APOSTROPHE = "(?:['\u0092\u2019]|&apos;)"
_APOSTROPHE_OR_TICK = "(?:['\u0092\u2019`\u0091\u2018\u201b]|&apos;)"
_CONTRACTION = f"{_APOSTROPHE}(?:[msdMSD]|[rR][eE]|[vV][eE]|[lL][lL])"  # it's, I'd, we're
_NOT = f"[nN]{_APOSTROPHE_OR_TICK}[tT]"
_THING_PART = f"(?:[dDoOlL]{_APOSTROPHE_OR_TICK}{_ALNUM})?{_ALNUM}+"
_THING = f"{_THING_PART}(?:[-_\u058a\u2010\u2011]{_THING_PART})*"  # t-shirt, x_1, o'clock
_INITIALS = r"[A-Za-z](?:\.[A-Za-z])+"  # a.m, U.S
_STATES = r"(?i:(?:canada|sino|korean|eu|japan|non)-u\.s|u\.s\.-u\.k|u\.s\.-u\.s\.s\.r)"
_HYPHENATED = f"[A-Za-z0-9][A-Za-z0-9.,\u00ad]*(?:-(?:{_INITIALS}\\.|[A-Za-z0-9\u00ad]+))+"  # U.S.-based
_NAME, _VALUE = "[A-Za-z][A-Za-z0-9_:.-]*", """(?:'[^'\r\n]*'|"[^"\r\n]*")"""
_TAG = rf"<(?:[!?][A-Za-z-][^>\r\n]*|{_NAME}(?: +{_NAME}(?: *= *{_VALUE})?)* */?|/{_NAME}) *>"  # <a href="x">
_NUMBER = f"(?:{_DIGIT}*(?:[.:,\u00ad\u066b\u066c]{_DIGIT}+)+|{_DIGIT}+)"
_STRAIGHT = "'\u0092\u2019&"  # what an apostrophe may begin with


def _spaces(token: str) -> str:
    return token.replace(" ", _NBSP)


def _soft_hyphens(token: str) -> str:
    return token.replace("\u00ad", "") or "-"


def _ampersands(token: str) -> str:
    return token.replace("&amp;", "&")


def _apostrophes(token: str) -> str:
    return re.sub("[\u0091\u2018\u201b]", "`", re.sub(_APOSTROPHE, "'", token))


def _quotes(token: str) -> str:
    return _replace(token, tables.QUOTES)


def _brackets(token: str) -> str:
    return _replace(_spaces(token), tables.BRACKETS)


def _round_brackets(token: str) -> str:
    return token.replace("(", "-LRB-").replace(")", "-RRB-")


def _replace(token: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        token = token.replace(old, new)
    return token


def _nothing(_: str) -> str:
    return ""


def _always(token: str) -> Callable[[str], str]:
    return lambda _: token


def _word_rules() -> _Rules:
    """Words, what is split off them (n't, 's) and words that hold an apostrophe."""
    yield "cC", "((?i:can))(?i:not)", None
    yield "gGwW", "((?i:gon|wan))(?i:na)", None
    yield "gG", "((?i:got))(?i:ta)", None
    yield "gGlL", "((?i:gim|lem))(?i:me)", None
    yield "'", "('[tT])(?i:is|was)", None
    yield "<", f"({_TAG})", _spaces
    yield "&", "(&(?:MD|mdash|ndash);)", _always("--")
    yield "\u0096\u0097\u2013\u2014\u2015", "(.)", _always("--")
    yield "&", "(&nbsp;)", _nothing
    yield "&", "(&(?:HT|TL|UR|LR|QC|QL|QR|odq|cdq|#[0-9]+);)", None
    yield _L + "&", f"({_WORD}){_CONTRACTION}", _soft_hyphens
    yield _L, f"([A-Za-z\u00ad]*[A-MO-Za-mo-z]\u00ad*){_NOT}", _soft_hyphens
    yield _L + "&", f"({_WORD})", _soft_hyphens
    yield _STRAIGHT + "nN", f"({_APOSTROPHE}[nN]{_APOSTROPHE}?)", None  # rock 'n' roll
    yield "lLdDjJ", f"([lLdDjJ]{_APOSTROPHE})", None
    yield "dDsSoO", f"((?i:dunkin|somethin|ol){_APOSTROPHE})", None
    yield _STRAIGHT, f"({_APOSTROPHE}(?i:em|till|til|cause))", None
    yield _STRAIGHT, f"({_APOSTROPHE}[2-9]0[sS])", None
    yield _L, f"([A-HJ-XZn]{_APOSTROPHE_OR_TICK}{_PLAIN_LETTER}{{2,}})", None
    vowel = f"{_PLAIN_LETTER}+[aeiouyAEIOUY]{_APOSTROPHE_OR_TICK}[aeiouA-Z]{_PLAIN_LETTER}*"
    yield _L, f"({vowel})", None  # ma'am, Hallowe'en
    yield "'cneslCNESL", "((?i:cont'd\\.|cont'd|'twas|nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l))", None
    yield "oO", f"([oO]{_APOSTROPHE_OR_TICK}[oO])", None
    yield "yY", f"([yY]{_APOSTROPHE}){_PLAIN_LETTER}", None
    yield _STRAIGHT, rf"({_APOSTROPHE}[0-9][0-9]){_SPACE_OR_END}", None  # '90


def _address_rules() -> _Rules:
    """Web and mail addresses, names and tags with @ and #."""
    # the second alternatives: the program counts characters beyond U+FFFF, most emoji, as two
    rest = r"""(?:[^ \t\n\f\r"<>|()]+[^ \t\n\f\r"<>|.!?(){},-]|[\U00010000-\U0010ffff])"""
    host = r"""(?:[^ \t\n\f\r"<>|(){}]+[^ \t\n\f\r"<>|.!?(){},-]|[\U00010000-\U0010ffff])"""
    label = r"""[^ \t\n\f\r"`'<>|.!?(){},-_$]+\."""  # the range from comma to underscore holds A-Z and 0-9
    yield "hH", f"((?i:https?)://{host})", None
    for path in ("", f"/{rest}"):
        yield "w", rf"(www\.(?:[^ \t\n\f\r\"<>|.!?(){{}},]+\.)+[a-zA-Z]{{2,4}}{path})", None
        yield _ANY, f"((?:{label})+(?:com|net|org|edu){path})", None
    local, last = r"""[a-zA-Z0-9][^ \t\n\f\r"<>|()\u00a0{}]*""", r"""[^ \t\n\f\r"<>|(){}.\u00a0]+"""
    yield _L + _D + "<&", rf"((?:&lt;|<)?{local}@(?:{last}\.)*{last}(?:&gt;|>)?)", None
    yield "@", "(@[a-zA-Z_][a-zA-Z_0-9]*)", None
    yield "#", f"(#{_LETTER}+)", None


def _number_rules() -> _Rules:
    """Contractions that stand alone, dates, numbers, fractions, money, slashed words."""
    yield _STRAIGHT, f"({_CONTRACTION})[^A-Za-z]", _apostrophes
    yield "nN", f"({_NOT})", _apostrophes
    yield _D, f"({_DIGIT}{{1,2}}[-/]{_DIGIT}{{1,2}}[-/]{_DIGIT}{{2,4}})", None
    yield _D + "-+.:,\u00ad\u066b\u066c", f"([-+]?{_NUMBER})", _soft_hyphens
    raised, lowered = "[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+", "[\u2080-\u2089]+"
    yield _ANY, f"([\u207a\u207b\u208a\u208b]?(?:{raised}|{lowered}))", None
    digits = f"{_DIGIT}{{1,4}}"
    yield _D, rf"((?:{digits}[- \u00a0])?{digits}(?:\\?/|\u2044){digits})", _spaces
    brackets = "(?i:RRB|LRB|RCB|LCB|RSB|LSB)"
    yield "-CcpaSs", rf"(-{brackets}-|C\.D\.s|[cC]ap'n|c'est|pro-|anti-)", None
    yield "sS", "([sS](?:&amp;|&)(?:[pP]-500|[lL]s))", None
    path = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
    yield _L + _D, rf"({path}(?:\\?/{path}){{1,2}})", None  # and/or
    yield _L + "$#", r"([A-Z]*\$|#)", None


def _abbreviation_rules() -> _Rules:
    """Words that keep their full stop; hyphenated things, file names, C++."""
    ending = [f"(?i:{word})" for word in tables.ENDING_ABBREVIATIONS] + [tables.ENDING_PATTERN]
    ending += [f"{word[0]}(?i:{word[1:]})" for word in tables.CAPITAL_ABBREVIATIONS]
    titles = [f"(?i:{word})" for word in tables.TITLE_ABBREVIATIONS] + [tables.TITLE_PATTERN]
    yield _L, rf"((?:{'|'.join(ending)})\.)(?s:..)", None
    starters = "|".join(f"{word[0]}(?i:{re.escape(word[1:])})" for word in tables.SENTENCE_STARTERS)
    yield _L, rf"([A-Za-z])\.{_SPACE_OR_END}+(?:{starters}|{_TAG}){_SPACE_OR_END}", None  # vitamin C. The
    yield _L, rf"((?i:{'|'.join(tables.NUMBER_ABBREVIATIONS)})\.){_SPACE_OR_END}?{_DIGIT}", None
    yield _L, rf"((?:{'|'.join(titles)}|(?i:a\.k\.a)|[A-Za-z])\.)", None
    yield _L, rf"((?:{'|'.join(ending)})\.)", None
    yield "pPeE", r"((?i:ph|ed)\.[dD]\.)", None
    yield _L, rf"({_INITIALS}\.)", None
    yield _L, rf"({_STATES}\.)", None
    yield _L, f"({_STATES}){_SPACE_OR_END}", None
    yield _L, f"({_INITIALS})", None
    yield _L + _D, f"({_THING})", _soft_hyphens
    yield _L, "([A-Z]+(?:(?:&amp;|[+&])[A-Z]+)+)", _ampersands  # AT&T
    yield _L + _D, f"({_HYPHENATED})", _soft_hyphens
    extensions = "|".join(sorted(tables.FILE_EXTENSIONS, key=len, reverse=True))
    yield _L + _D, rf"((?:{_LETTER_OR_DIGIT}+\.)+(?i:{extensions}))(?:{_SPACE_OR_END}|[.?!,])", None
    yield _L + _D + "&", rf"((?:{_HYPHENATED}|{_THING}|{_WORD})\.)[,;:\u3001]", _soft_hyphens
    yield "cCfF", r"([cC]\+\+|[cCfF]#)", None


def _mark_rules() -> _Rules:
    """Telephone numbers, quotes, smileys, brackets, dots, dashes and single signs."""
    yield _ANY, f"({_SPACE}+)", _nothing
    area = r"(?:\([0-9]{2,3}\)[ \u00a0]?|(?:\+\+?)?(?:[0-9]{2,4}[- \u00a0])?[0-9]{2,4}[- \u00a0])"
    yield _D + "(+", rf"({area}[0-9]{{3,4}}[- \u00a0]?[0-9]{{3,5}})", _brackets
    yield '"&', '("|&quot;)[A-Za-z0-9$]', _always("``")
    yield '"&', '("|&quot;)', _always("''")
    yield "<>:;=", r"([<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]])[^A-Za-z0-9]", _round_brackets
    yield _ANY, r"(\([-^x=~<>'][_.]?[-^x=~<>']\)|\([\^x=~<>']-[\^x=~<>'`]\)|[-^x=~<>']_[-^x=~<>'])", _brackets
    yield "()[]{}", "(.)", _brackets
    yield ".\u0085\u2026", r"(\.{3,5}|(?:\.[ \u00a0]){2,3}\.|[\u0085\u2026])", _always("...")
    yield "?!", "([?!]+)", None
    yield "*\\", r"(\*+|(?:\\\*){1,3})", None
    yield "#@_", "(#+|@+|_{2,})", None
    yield "<>", "(<<|>>)", None
    yield "-", "(-{2,4})", _always("--")
    yield "-", "(-{5,})", None
    yield "'", "(')[A-Za-z][^ \t\n\r\u00a0]", _always("`")
    yield "'", "('')", None
    yield _STRAIGHT, f"({_CONTRACTION})", _apostrophes
    yield _STRAIGHT, f"({_APOSTROPHE})", _quotes
    yield _ANY, "([`\u0091-\u0094\u2018-\u201f\u2039\u203a\u00ab\u00bb]{1,2})", _quotes
    for old, new in tables.REWRITES.items():
        yield old[0], f"({re.escape(old)})", _always(new)
    yield _ANY, f"([{tables.SYMBOLS}])", None
    yield "\u00ad", "(.)", _always("-")
