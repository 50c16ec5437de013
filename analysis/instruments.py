"""Was it already there? A section of the page for each instrument that looks inside a gain, or why it is absent.

An instrument reads what finished cells kept and says what it finds, in sentences with intervals, tables and figures.
Each is a file of its own with one function, ``section(evidence) -> Section``; here they are gathered in the page's
order.
"""

from analysis import anatomy, arena, bits, forgetting, new_knowledge, pass_at_k, perplexity, shift
from analysis.section import Evidence, Section

INSTRUMENTS = (pass_at_k, shift, arena, anatomy, perplexity, forgetting, new_knowledge, bits)


def sections(evidence: Evidence) -> list[Section]:
    """Of all instruments, present or absent, in the page's order."""
    return [instrument.section(evidence) for instrument in INSTRUMENTS]
