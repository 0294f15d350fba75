"""Whom figures are about: people of LFW kept for a report and people of MFR2, but for those who are somebody else's second name."""

from __future__ import annotations

from oaml.datasets.people import split_name, split_of

LEFT_OUT = {
    "Sepp_Blatter": "LFW: Joseph_Blatter, of whom training sees two photographs",
    "Martha_Bowen": "LFW: one of her photographs is one of Gabrielle_Rose",
    "ImranKhan": "MFR2: Imran_Khan of LFW",
    "NancyPelosi": "MFR2: Nancy_Pelosi of LFW",
    "SimonCowell": "MFR2: Simon_Cowell of LFW",
}
"""Folder -> who it is as well. What `oaml evaluate` warns of over all of LFW and MFR2, looked at: the three of MFR2 by their
spelling, the two of LFW by their faces. Twin sisters and two babies, whom it names too, are different people."""


def counts(person: str) -> bool:
    """Whether figures may be about a folder."""
    return person not in LEFT_OUT


def reported(person: str) -> bool:
    """Whether a folder of LFW is of the people that figures are about."""
    return split_name(person) == "report" and counts(person)


def half(person: str) -> str:
    """Of MFR2: people of even digests choose between variants, the others report."""
    return "report" if split_of(person) % 2 else "choose"
