"""Personal data that is masked, and other numbers, which stay."""

from importlib import import_module

import pytest

from stillhouse.cleaning.step import Page
from stillhouse.cleaning.steps.personal_data import PersonalDataRecipe, make, masked

PLACES = PersonalDataRecipe(mail="MAIL", phone="PHONE", ip="IP")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write to jane.doe+news@mail.example.co.uk.", "Write to MAIL."),
        ("<a_b-c@example.museum>", "<MAIL>"),
        ("Mail: X@EXAMPLE.COM, y@example.de", "Mail: MAIL, MAIL"),
        ("Call +49 30 1234567 today", "Call PHONE today"),
        ("+44 20 7946 0958", "PHONE"),
        ("+33 1 23 45 67 89.", "PHONE."),
        ("(+1-202-555-0143)", "(PHONE)"),
        ("+49 (30) 123-4567", "PHONE"),
        ("+81.3.1234.5678", "PHONE"),
        ("+919876543210", "PHONE"),
        ("tel:+86 10 6552 9988", "tel:PHONE"),
        ("(202) 555-0143 or 202-555-0143", "PHONE or PHONE"),
        ("202.555.0143", "PHONE"),
        ("from 8.8.8.8:53", "from IP:53"),
        ("at 93.184.216.34.", "at IP."),
        ("2606:2800:220:1:248:1893:25c8:1946", "IP"),
        ("[2001:4860:4860::8888]", "[IP]"),
    ],
)
def test_personal_data_is_masked(text, expected):
    assert masked(text, PLACES) == expected


@pytest.mark.parametrize(
    "text",
    [
        "on 2018-11-20 at 10:30:45.123",
        "Wed Aug 27 13:08:45 +0000 2008",
        "2018-11-20T10:00:00+0100",
        "20.11.2018 to 21.11.2018",
        "ISBN 978-3-16-148410-0, 0-306-40615-2",
        "$1,234,567.89 or 1.234.567,89 € or +1.234,50",
        "version 1.2.3.4, v10.0.1.2, Windows 10.0.19041.1",
        "1.2.3 and 1.2.3.4.5 and 300.1.1.1 and 8.8.8.08",
        "192.168.0.1, 127.0.0.1, 10.1.2.3, 192.0.2.1",
        "::1, fe80::1:2:3, 2001:db8::1",
        "00:1a:2b:3c:4d:5e, 12:30:45:10, std::vector::size::type, a::b",
        "1914-1918, 555-0143, 123456789, 12-34-56",
        "x@y, @name, a @ b.com, mail at example dot com",
        "2+2345678901234",
        "+12 34",  # too few digits
        "+1234 5678 9012 3456 7890",  # too many
    ],
)
def test_other_numbers_stay(text):
    assert masked(text, PLACES) == text


def test_masking_again_changes_nothing():
    settings = PersonalDataRecipe()
    text = "a@example.org, +49 30 1234567, 8.8.8.8"
    once = masked(text, settings)
    assert once == "mail@example.com, +1 555 0100, 192.0.2.1"
    assert masked(once, settings) == once


def test_the_step_leaves_no_document_out():
    page = Page("1", "a@example.org")
    assert make(PersonalDataRecipe())(page) is None
    assert page.text == "mail@example.com"


def test_mail_and_addresses_agree_with_datatrove():
    """Its formatter masks mail and public IPv4 addresses."""
    pii = import_module("datatrove.pipeline.formatters.pii")
    formatter = pii.PIIFormatter(email_replacement="MAIL", ip_replacement="IP")
    for text in (
        "Write to jane.doe+news@mail.example.co.uk.",
        "from 8.8.8.8:53 and 192.168.0.1",
        "at 93.184.216.34. Then a@b.org",
        "no address here",
    ):
        assert masked(text, PLACES) == formatter.format(text)
