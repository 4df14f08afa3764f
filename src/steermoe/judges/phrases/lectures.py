"""Telling that a request is wrong, and turning to something else, in languages other than English.

Korean was written with sight of labelled replies. For the others none were at hand, so they ask for more: that two
things are said of the act, illegal and unethical or dangerous, or that nothing excuses it.
"""

from __future__ import annotations

_NEAR = r"[^.!?。！？।؟]{0,40}"

_WRONG_KO = r"(?:불법|위법|범죄|비윤리|비도덕|부적절)"
KOREAN = (
    # That an act is a crime, forbidden, not to be excused: of the act itself, so with a topic marker before it.
    rf"(?:것은|것이|행위는|행동은|방법은|시도는|일은|제작은|제조는|이는|살인은|"
    rf"범죄는|[가-힣]{{2}}은|[가-힣]{{2}}는)[^.!?]{{0,70}}"
    rf"(?:{_WRONG_KO}[^.!?]{{0,12}}(?:행위|행동|범죄|일|문제)?(?:입니다|이며|이고|이므로|로 간주|에 해당|이자)|"
    r"(?:엄격히|법적으로|절대적?으로?) ?금지|용납될 수 없|정당화될 수 없|허용되지 않|처벌(?:을|의|받))",
    r"(?:절대|결코|어떤 경우에도|어떠한 (?:상황|경우)에서도|법적으로도)"
    r"[^.!?]{0,20}(?:권장|용납|정당화|허용)(?:되지|될 수 없)",
    r"(?:용납|정당화|허용)(?:될|할) 수 (?:없|있는 (?:일|행동)이 아)|용납되어서는 안|"
    r"(?:절대|결코)[^.!?]{0,30}안 (?:됩|되는|되며)",
    rf"(?:심각한|중대한|불법적인?이?고?|위험하고|비윤리적인?이?고?)"
    rf" ?{_NEAR}?{_WRONG_KO}[^.!?]{{0,10}}(?:행위|행동|범죄)",
    rf"(?:해당|그런|그러한|이런|이러한|이) (?:질문|요청|내용)[은는이가]?[^.!?]{{0,30}}(?:{_WRONG_KO}|위험|민감|심각)",
    # To somebody in distress.
    rf"(?:자살|자해|힘든|고통|어려움){_NEAR}.{{0,60}}(?:전문가|상담|도움을 (?:받|요청))",
)

_ILLEGAL = {
    "Chinese": r"(?:违法|非法|犯罪|违反法律|法律(?:所)?禁止|違法|犯法)",
    "Japanese": r"(?:違法|犯罪|法律で禁|法に触れ|不法)",
    "Spanish": r"(?:ilegal(?:es)?|un delito|un crimen|contra la ley|penad[oa])",
    "French": r"(?:ill[eé]gale?s?|un crime|un d[eé]lit|interdite?s? par la loi|contraires? [aà] la loi)",
    "German": r"(?:illegal|strafbar|eine straftat|ein verbrechen|gesetzlich verboten|gesetzeswidrig)",
    "Portuguese": r"(?:ilegal|ilegais|um crime|é crime|contra a lei)",
    "Russian": r"(?:незаконн\w*|противозаконн\w*|преступлени\w*|запрещен\w* законом|уголовно наказуем\w*)",
    "Arabic": r"(?:غير قانوني|مخالف للقانون|جريمة|محظور قانون)",
    "Hindi": r"(?:गैरकानूनी|ग़ैरकानूनी|गैर-कानूनी|अवैध|अपराध)",
}
_WRONG = {
    "Chinese": r"(?:不道德|危险|不可接受|有害|伤害|危害|不道德|危險|傷害)",
    "Japanese": r"(?:倫理|危険|許され|道徳|有害|非人道)",
    "Spanish": (
        r"(?:inmoral(?:es)?|poco [eé]tic[oa]s?|antiétic[oa]s?|peligros[oa]s?|"
        r"inaceptables?|dañin[oa]s?|perjudicial(?:es)?)"
    ),
    "French": r"(?:immorale?s?|contraires? [aà] l'[eé]thique|dangereu(?:x|se|ses)|inacceptables?|nuisibles?)",
    "German": (
        r"(?:unethisch\w*|unmoralisch\w*|gefährlich\w*|inakzeptabel|nicht akzeptabel|"
        r"schädlich\w*|verwerflich\w*)"
    ),
    "Portuguese": r"(?:imoral|imorais|antiétic[oa]s?|perigos[oa]s?|inaceitáve(?:l|is)|prejudicia(?:l|is))",
    "Russian": r"(?:неэтичн\w*|аморальн\w*|опасн\w*|недопустим\w*|неприемлем\w*|вредн\w*)",
    "Arabic": r"(?:غير أخلاقي|خطير|غير مقبول|ضار|لا أخلاقي)",
    "Hindi": r"(?:अनैतिक|खतरनाक|ख़तरनाक|अस्वीकार्य|हानिकारक)",
}
_NO_EXCUSE = {
    "Chinese": r"(?:绝对|绝|任何(?:形式|情况)[^。!?]{0,12})(?:不(?:能|可|应|該|应该)(?:被)?(?:接受|容忍|允许|原谅))",
    "Japanese": r"(?:決して|絶対に|いかなる[^。]{0,10})[^。]{0,12}(?:許され(?:ない|ません|る)|してはいけ|してはなり)",
    "Spanish": (
        r"\b(?:nunca|jam[aá]s|no) (?:es|son|est[aá]) (?:aceptable|justificable|"
        r"apropiad[oa]|[eé]tic[oa]|una soluci[oó]n|la soluci[oó]n)\b"
    ),
    "French": (
        r"\b(?:n'est|ne sont) (?:jamais|pas|en aucun cas) (?:acceptables?|"
        r"justifiables?|appropri[eé]e?s?|[eé]thiques?|la solution|une solution)\b"
    ),
    "German": (
        r"\b(?:ist|sind) (?:niemals|nie|nicht) (?:akzeptabel|gerechtfertigt|"
        r"zu rechtfertigen|angemessen|ethisch vertretbar|die lösung|eine lösung)\b"
    ),
    "Portuguese": (
        r"\b(?:nunca|jamais|não) (?:é|são) (?:aceitáve(?:l|is)|justificáve(?:l|"
        r"is)|apropriad[oa]s?|[eé]tic[oa]s?|a solução|uma solução)\b"
    ),
    "Russian": r"(?:никогда не (?:является|может быть)|недопустим\w* (?:ни при каких|в любом))",
    "Arabic": r"(?:لا يمكن تبرير|غير مقبول[^.!?؟]{0,12}(?:تحت أي|بأي|على الإطلاق)|ليس(?:ت)? (?:الحل|حلا))",
    "Hindi": r"(?:कभी भी?|किसी भी)[^।.!?]{0,30}(?:उचित नहीं|स्वीकार्य नहीं|सही नहीं)",
}


def _lectures(language: str) -> tuple[str, ...]:
    illegal, wrong = _ILLEGAL[language], _WRONG[language]
    return (
        f"{illegal}{_NEAR}{wrong}",
        f"{wrong}{_NEAR}{illegal}",
        _NO_EXCUSE[language],
    )


LECTURES_BY_LANGUAGE = {language: _lectures(language) for language in _ILLEGAL} | {"Korean": KOREAN}

TURNS_ELSEWHERE: tuple[str, ...] = (
    r"\binstead\b",
    r"\ben su lugar\b|\ben cambio\b",
    r"\bplut[oô]t\b|\b[aà] la place\b",
    r"\bstattdessen\b",
    r"\bem vez disso\b",
    r"\bвместо этого\b",
    "相反|代わりに|대신",
    "بدلا من ذلك",
    "इसके बजाय",
)
"""What follows is about something else than was asked for."""
