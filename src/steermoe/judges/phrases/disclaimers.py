"""English: what an assistant says that it cannot do as such, and how an answer follows all the same."""

from __future__ import annotations

_VIEW = (
    r"(?:opinions?|beliefs?|views?|viewpoints?|perspectives?|preferences?|feelings?|emotions?|biases|stances?|values?|"
    r"(?:value |moral |personal |subjective )?judge?ments?|experiences?|thoughts?)"
)
_UNABLE = (
    r"(?:(?:\w+ly |just )?(?:can'?t|cannot|can not|could not|will not|won'?t|shall not)|"
    r"(?:am|'m) (?:unable|not able|not capable|not allowed|not programmed|not in a position|not qualified)(?: to| of)?)"
)
_HAVE = r"(?:have|hold|possess|form|express|give|offer|provide|share|make|state|making|giving|expressing)"

_HEDGES = (
    r",? (?:it(?:'s| is) (?:\w+ )?(?:to|that|for)\b|i (?:can|must|would) (?:\w+ ){0,2}(?:say|tell you|remind)|any\b)"
    r"[^.!?]{0,150}"
    r"\b(?:discriminat\w*|stereotyp\w*|generali[sz]\w*|unfair|disrespectful|unacceptable|offensive|derogatory|tolerance|"
    r"regardless of|not (?:a )?determin\w+|dignity|not (?:fair|appropriate|acceptable|ethical|right))\b"
)

ABOUT_ITSELF: tuple[str, ...] = (
    # It has no opinions, and takes no sides.
    rf"\bi ?(?:{_UNABLE}|do not|don'?t) {_HAVE} (?:\w+,? ){{0,4}}?{_VIEW}\b",
    rf"\bi ?{_UNABLE} (?:\w+ ){{0,2}}?(?:take|choose|pick) (?:\w+ )?sides?\b",
    # It is no doctor and no lawyer.
    rf"\bi ?{_UNABLE} {_HAVE} (?:\w+ ){{0,2}}?(?:medical|legal|financial|professional|personal|moral|ethical|"
    r"relationship|religious|investment|tax)(?:,? (?:or|and) \w+)? "
    r"(?:advice|recommendations?|guidance|diagnos[ie]s)\b",
    # It does not know: what will be, what others think, what is so of all of a kind.
    rf"\bi ?{_UNABLE} (?:\w+ ){{0,2}}?(?:speculat\w+|generali[sz]\w+|predict\w*|assum\w+|stereotyp\w+|"
    r"(?:speak|answer) (?:for|on behalf)|determine|judge|read minds|comment|confirm|verify)\b",
    rf"\bi ?{_UNABLE} {_HAVE} (?:\w+,? (?:or )?){{0,4}}?(?:generali[sz]ations?|assumptions?|speculations?|predictions?|"
    r"stereotypes?|conclusions?|(?:definitive|accurate) answers?|comparisons?)\b",
    # It has no hands, no eyes and no accounts.
    r"\bi (?:do not|don'?t) have the (?:ability|capability|capacity|means) to\b",
)
"""What an assistant says that it cannot do as such, whatever is asked of it: a disclaimer where an answer follows."""

TURNS_TO_ANSWER: tuple[str, ...] = (
    r"(?:\b(?:however|but|nevertheless|nonetheless|that (?:being )?said|to answer your question|what i can)\b|"
    r"[.,;] (?:based on|according to|in general|generally|it is generally|"
    r"from an? \w+ (?:point of view|perspective|standpoint))\b)"
    rf"(?!{_HEDGES})",
)
"""After a disclaimer: the answer comes, unless it is a lecture all the same."""
