"""Replace e-mail addresses, telephone numbers and IP addresses by placeholders.

Found by their form: an address that is written out ("mail at example dot com") stays, and so do
names, and national telephone numbers of other forms than those of North America. Private and
reserved IP addresses are not personal data and stay, too.
"""

import ipaddress
import re

from stillhouse.cleaning.step import Judge, Page, Step
from stillhouse.section import Section

MAIL = re.compile(r"\b[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}\b")
# Patterns begin with a character that text has few of, and then look back at what is before it:
# that is several times as fast as looking back at each character.
# Not of a version ("v1.2.3.4", "version 1.2.3.4") or of a number with more parts.
IPV4 = re.compile(
    r"\d(?<![\w.].)(?<!ersion .)\d{0,2}\.(?:\d{1,3}\.){2}\d{1,3}(?![\d.]*\d)", re.DOTALL
)
COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:")  # are in each IPv6 address
IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){3,7}(?![\w:])")
# International (+49 30 1234567; no country's code begins with 0, as time zones do), or with an area
# code in a form of North America.
PHONE = re.compile(
    r"[+(\d](?<![\w+.].)(?:(?<=\+)[1-9]\d{0,2}(?:[ .\-/]?(?:\(\d{1,5}\)|\d{1,5})){2,6}"
    r"|(?<=\()\d{3}\) ?\d{3}[ .-]\d{4}|(?<=\d)\d{2}[.-]\d{3}[.-]\d{4})(?![\w-])",
    re.DOTALL,
)
PHONE_DIGITS = range(8, 16)  # ITU-T E.164 allows 15


class PersonalDataRecipe(Section):
    """Placeholders for personal data."""

    mail: str = "mail@example.com"
    """Stands for an e-mail address."""
    phone: str = "+1 555 0100"
    """Stands for a telephone number."""
    ip: str = "192.0.2.1"
    """Stands for an IP address."""


def make(settings: PersonalDataRecipe) -> Judge:
    def judge(page: Page) -> str | None:
        page.text = masked(page.text, settings)
        return None

    return judge


def masked(text: str, settings: PersonalDataRecipe) -> str:
    """The text with placeholders."""

    def phone(found: re.Match[str]) -> str:
        digits = sum(map(str.isdigit, found[0]))
        return settings.phone if digits in PHONE_DIGITS else found[0]

    def address(found: re.Match[str]) -> str:
        try:
            return settings.ip if ipaddress.ip_address(found[0]).is_global else found[0]
        except ValueError:  # such as a number above 255, or a time
            return found[0]

    if "@" in text:
        text = MAIL.sub(lambda _: settings.mail, text)
    text = IPV4.sub(address, PHONE.sub(phone, text))
    return IPV6.sub(address, text) if COLONS.search(text) else text


STEP = Step(PersonalDataRecipe, make)
