"""The prose of wiki pages: what of the markup stays, and time that is linear whatever the page."""

import time

import pytest

from stillhouse.data.wikitext import Wikitext


def prose(source: str) -> str:
    return Wikitext().prose(source)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        # Links give their labels.
        ("an [[apple]] and [[Pear (fruit)|a pear]]s", "an apple and a pears"),
        ("[[:Category:Fruit]], [[Fruit#History]]", "Category:Fruit, Fruit"),
        ("[[Fruit (food)|]] and [[wikt:fruit|the word]]", "Fruit and the word"),
        ("see [https://a.org a site] or [https://a.org].", "see a site or."),
        ("he said [sic] that", "he said [sic] that"),
        # Files, categories and links to other languages do not.
        ("a[[File:A.jpg|thumb|100px|An [[apple]] [sic], [[pear|x]].]] b", "a b"),
        ("a[[Datei:A.jpg|mini|Ein [[Apfel]]]] b", "a b"),
        ("a [[Image:A.png]]b[[Category:C|key]][[de:Apfel]]", "a b"),
        # Bold and italic text, and apostrophes.
        ("'''''a''''' '''b''' ''c'' d's l'''amour'''", "a b c d's lamour"),
        ("''''a''''", "'a'"),
        # Templates, with braces of all kinds around them.
        ("a {{x|{{y|[[z|w]]}}|b=c}} b", "a b"),
        ("a{{x\n|b\n}}, c", "a, c"),
        ("a {{{1|{{x}}}}} b {{x|{y}}} c {{x|{{{y}}}}} d", "a b c d"),
        ("a {{x|{{y}} b", "a x| b"),
        ("a }} b {{x}} c", "a b c"),
        # What they leave around them.
        ("Rome ({{IPA-it|x}}; {{audio|y}}, Latin: ''Roma'') is", "Rome (Latin: Roma) is"),
        ("Rome ({{IPA-it|x}}) is, {{x}}, a ({{x}}, {{y}}) city{{x}}.", "Rome is, a city."),
        ("a word<ref>b</ref> , c<ref name=d />. E () f", "a word, c. E () f"),
        # Some stand in sentences.
        ("{{convert|5|km|mi}} and {{cvt|5|-|7|kg|lb|abbr=on}}", "5 km and 5\u20137 kg"),
        ("{{lang|fr|le {{small|mot}}}} {{lang-de|Wort}} {{nowrap|[[a|b c]]}}", "le mot Wort b c"),
        ("1{{frac|1|2}} 2{{nbsp}}m a{{snd}}b '' A''{{'}}s", "11/2 2 m a \u2013 b A's"),
        # Elements.
        ("10<sup>6</sup> H<sub>2</sub>O 5<sup>th</sup>", "10^6 H2O 5th"),
        ("a<ref>b {{c}}</ref><ref name='d'/>, x<math>y</math> z", "a, x z"),
        ("a<!-- b -->c <span style='d'>e</span> f<br/>g", "ac e f\ng"),
        ("a <!-- b", "a"),
        ("a <ref>b", "a b"),
        ("<nowiki>[[a]] ''b'' {{c}} &lt;d></nowiki>", "[[a]] ''b'' {{c}} <d>"),
        ("a &amp; b &lt;c&gt; d&nbsp;e &#39;f", "a & b <c> d e 'f"),
        ("1 < 2 and 3 > 2", "1 < 2 and 3 > 2"),
        ("a <gallery>\nFile:B.jpg|c\n</gallery>\nd", "a\nd"),
        ("__NOTOC__a __KEIN_INHALT b", "a __KEIN_INHALT b"),
        # Lines that are no running text.
        ("== A ==\nb\n=== c ===\n\n\nd", "b\n\nd"),
        ("a\n* b\n# c\n: d\n; e\n----\nf", "a\nf"),
        ("a.\n\nFruits:\n* b\n\nHe said this. Then:\n* c\n\nThus:\n\nd", "a.\n\nHe said this. Then:\n\nThus:\n\nd"),
        ("a\n{| class=b\n|-\n! c\n| d {{e}}\n{|\n| f\n|}\n|}\ng", "a\n\ng"),
        ("a\n{| class=b\n| c\n|}}\n|}\nd", "a\n\nd"),
        ("a\n{| class=b\n| c\n\nd", "a\n\nd"),
        ("a <table><tr><td>b<table>c</table></td></tr></table> d", "a\nd"),
        ("a\n<ul><li>b<li>c</ul>d", "a\n\nd"),
        ("{{Infobox\n| a = {{b}}\n| c = <ref>d</ref>\n}}\n'''E''' is f.", "E is f."),
        ("", ""),
    ],
)  # fmt: skip
def test_prose_of_markup(source, text):
    """Running text alone."""
    assert prose(source) == text


def test_local_names_of_namespaces_are_given_by_the_dump():
    """A file without an extension that is known, and a category."""
    wikitext = Wikitext(frozenset({"файл", "категория"}))
    assert wikitext.prose("а [[Файл:Б|мини|в]][[Категория:Г]] [[д]]") == "а д"


@pytest.mark.parametrize(
    "part",
    [
        "{{", "}}", "{{{", "{|\n", "\n|}", "[[", "]]", "[[a|", "<ref>", "<ref", "<!--", "<nowiki>",
        "<", "</", "<table>", "</ul>", "[http://a ", "[//", "'", "''", "(", "( ", "({{a}}", ",{{a}} ",
        " {{a}}", "{{lang|", "{{lang|a}}", "{{small|[[", "__a", "=", ":", "\n:", "\n", "&amp", "\t",
        "{{a|<ref>{{b}}</ref>", "[[File:a|[[b|", ",", " ,", "|",
    ],
)  # fmt: skip
def test_time_is_linear_in_the_length_of_any_page(part):
    """Repeated markup that nothing closes is the worst case: 16 times as much takes no more than
    about 16 times as long, not 256 times."""

    def seconds(number: int) -> float:
        source = (part * number)[:number]
        begun = time.thread_time()
        prose(source)
        return time.thread_time() - begun

    short = min(seconds(5_000) for _ in range(3))
    assert seconds(80_000) < 64 * short + 0.02
